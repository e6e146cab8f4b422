"""Measures the share of a source's text that a model reads as [UNK]: of Chinese, MiniLM most."""

from __future__ import annotations

from psycopg import sql
from tokenizers import Tokenizer

from pgqueue_embed.chunking import Chunker
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.quantities import percent
from pgqueue_embed.source.read import source_names
from pgqueue_embed.source.trust import trusting

SAMPLE_RECORDS = 200
WORRYING_SHARE = 0.05

# Multilingual and Chinese models that sentence-transformers loads from safetensors.
READERS = "intfloat/multilingual-e5-small, BAAI/bge-small-zh-v1.5 or BAAI/bge-m3"

# Cut in SQL, so that a source of huge documents is not fetched to be sampled.
SAMPLE = """
select left({document}, 2000)
from {source} as source
where {document} <> ''
limit %s
"""


def unknown_token_share(connection: Connection, pipeline: Pipeline, tokenizer: Tokenizer) -> float:
    """Return the share, 0 to 1, of a source sample's tokens that the model does not know."""
    query = sql.SQL(SAMPLE).format(**source_names(pipeline))
    with trusting(connection, pipeline.spec):
        texts = [text for (text,) in connection.execute(query, (SAMPLE_RECORDS,))]
    chunker = Chunker(tokenizer, max_tokens=pipeline.spec.chunk_tokens, overlap_tokens=0)
    chunked = chunker.chunk(texts)
    tokens = sum(document.tokens for document in chunked)
    return sum(document.unknown_tokens for document in chunked) / tokens if tokens else 0.0


def describe_unknown_tokens(
    connection: Connection, pipeline: Pipeline, tokenizer: Tokenizer | None
) -> str | None:
    """Return a warning with the way out when the model cannot read the source, else None."""
    if tokenizer is None:
        return None
    share = unknown_token_share(connection, pipeline, tokenizer)
    if share < WORRYING_SHARE:
        return None
    return (
        f"{pipeline.model} does not know {percent(share, 0)} of the tokens in {pipeline.document}"
        f" of {pipeline.source}: those parts cannot be found by search; a model that reads them:"
        f" {READERS} (--model)"
    )
