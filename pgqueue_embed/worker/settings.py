"""Settings of a worker process, as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

from pgqueue_embed.errors import UsageError
from pgqueue_embed.log import mask
from pgqueue_embed.pipeline.option import Option, check_options

# The panel of the help of `work`.
WORKER = "Worker"

# A day: ten leases, in milliseconds, are a timeout that PostgreSQL takes.
MAX_SECONDS = 86_400

# Of one command; each holds the model once more.
MOST_PROCESSES = 16

# Of an option that other commands have, too.
MODEL_PATH_HELP = "The pipeline's model on this machine, if it lies elsewhere than its name says."


def _check_url(option: Option, url: str) -> None:
    """Raise UsageError for what is no URL of a collector."""
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_one = False
    if not is_one:
        raise UsageError(
            f"{option.flag} {mask(url)}: give the URL of a collector, such as http://localhost:4318"
        )


# What computes is imported for what is not usual alone: every command reads this file.


def _check_device(_: Option, device: str) -> None:
    """Raise UsageError for what names no device; whether it is here, the worker process finds."""
    if device != "auto":
        from pgqueue_embed.embedding.devices import check_device

        check_device(device)


def _check_precision(_: Option, precision: str) -> None:
    """Raise UsageError for a precision that there is not."""
    if precision != "auto":
        from pgqueue_embed.embedding.precision import check_precision

        check_precision(precision)


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """How one worker process works; see `pgembed work --help`.

    `last_model` is the key of the model that the process before this one worked with, `unserved`
    what that could not serve: ids of pipelines, each with the reason.
    """

    concurrency: Annotated[
        int,
        Option(
            short="-c",
            help="Claims in work at once; one computes while others read, chunk and write.",
            minimum=1,
            maximum=64,
            panel=WORKER,
        ),
    ] = 2
    device: Annotated[
        str,
        Option(
            help="auto, mps, cuda or cpu.",
            rule=_check_device,
            panel=WORKER,
        ),
    ] = "auto"
    precision: Annotated[
        str,
        Option(
            help="auto (the fastest that agrees with fp32), fp32, fp16 or bf16.",
            rule=_check_precision,
            panel=WORKER,
        ),
    ] = "auto"
    model_path: Annotated[
        str | None,
        Option(
            help=MODEL_PATH_HELP,
            panel=WORKER,
        ),
    ] = None
    lease_seconds: Annotated[
        float,
        Option(
            name="lease",
            help="Seconds without progress after which the server takes a claim back.",
            unit="second",
            minimum=1,
            maximum=MAX_SECONDS,
            panel=WORKER,
        ),
    ] = 60.0
    retry_delay_seconds: Annotated[
        float,
        Option(
            name="retry_delay",
            help="Seconds before a failed record's second attempt; doubles with each.",
            unit="second",
            minimum=0,
            maximum=MAX_SECONDS,
            panel=WORKER,
        ),
    ] = 5.0
    memory_limit_megabytes: Annotated[
        int | None,
        Option(
            name="memory_limit",
            help="Megabytes of process and device memory after which the worker process is"
            " replaced.",
            unit="megabyte",
            minimum=1,
            panel=WORKER,
        ),
    ] = None
    cache_megabytes: Annotated[
        int,
        Option(
            name="cache_size",
            help="Megabytes of vectors kept for chunks that occur again; 0 for none.",
            unit="megabyte",
            minimum=0,
            panel=WORKER,
        ),
    ] = 256
    otlp: Annotated[
        str | None,
        Option(
            help="URL of an OpenTelemetry collector that traces of claims go to (OTLP over HTTP);"
            " else OTEL_EXPORTER_OTLP_ENDPOINT, if set.",
            metavar="URL",
            rule=_check_url,
            panel=WORKER,
        ),
    ] = None
    drain: bool = False
    pipelines: tuple[str, ...] = ()
    max_records: int | None = None
    claim_seconds: float = 8.0
    last_model: str | None = None
    unserved: tuple[tuple[int, str], ...] = ()

    def __post_init__(self) -> None:
        check_options(self)
        if self.max_records is not None and self.max_records < 1:
            raise UsageError(f"--max-records {self.max_records}: give at least 1")

    def to_json(self) -> dict[str, Any]:
        """Return the settings as values that JSON can carry."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> WorkerSettings:
        """Return the settings that `to_json` gave."""
        unserved = tuple((int(each), str(reason)) for each, reason in values["unserved"])
        return cls(**{**values, "pipelines": tuple(values["pipelines"]), "unserved": unserved})


def check_processes(wanted: str) -> int | None:
    """Return how many processes are asked for, None for as many as help; raises UsageError."""
    if wanted == "auto":
        return None
    if wanted.isascii() and wanted.isdigit() and 1 <= int(wanted) <= MOST_PROCESSES:
        return int(wanted)
    raise UsageError(f"--processes {wanted}: give auto, or 1 to {MOST_PROCESSES}")
