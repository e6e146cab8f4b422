# A worker, or any command of pgembed. On Linux, torch brings CUDA's libraries along; without a GPU:
# docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
FROM python:3.13-slim-trixie

ARG TORCH_INDEX=https://pypi.org/simple
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY pgqueue_embed pgqueue_embed
COPY migrations migrations
RUN pip install --no-cache-dir --constraint constraints.txt --index-url "$TORCH_INDEX" torch \
    && pip install --no-cache-dir --constraint constraints.txt ".[bundled-model,server]" \
    && useradd --create-home --uid 1000 pgembed

USER 1000
WORKDIR /home/pgembed
# SIGTERM finishes the claims in hand: give it the time (docker stop --time 90).
ENTRYPOINT ["pgembed"]
CMD ["work"]
