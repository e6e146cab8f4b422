"""The options of a worker, shared by `work` and `run`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from pgqueue_embed.settings import WorkerSettings

WORKER = "Worker"

Concurrency = Annotated[
    int,
    typer.Option(
        "--concurrency",
        "-c",
        help="Claims in work at once; one computes while others read, chunk and write.",
        rich_help_panel=WORKER,
    ),
]
Device = Annotated[
    str,
    typer.Option("--device", help="auto, mps, cuda or cpu.", rich_help_panel=WORKER),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="auto (the fastest that agrees with fp32), fp32, fp16 or bf16.",
        rich_help_panel=WORKER,
    ),
]
ModelPath = Annotated[
    str | None,
    typer.Option(
        "--model-path",
        help="The pipeline's model on this machine, if it lies elsewhere than its name says.",
        rich_help_panel=WORKER,
        show_default=False,
    ),
]
Lease = Annotated[
    float,
    typer.Option(
        "--lease",
        help="Seconds without progress after which the server takes a claim back.",
        rich_help_panel=WORKER,
    ),
]
RetryDelay = Annotated[
    float,
    typer.Option(
        "--retry-delay",
        help="Seconds before a failed record's second attempt; doubles with each.",
        rich_help_panel=WORKER,
    ),
]
MemoryLimit = Annotated[
    int | None,
    typer.Option(
        "--memory-limit",
        help="Megabytes of process and device memory after which the worker process is replaced.",
        rich_help_panel=WORKER,
        show_default=False,
    ),
]
CacheSize = Annotated[
    int,
    typer.Option(
        "--cache-size",
        help="Megabytes of vectors kept for chunks that occur again; 0 for none.",
        rich_help_panel=WORKER,
    ),
]


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """The options that say how a worker works."""

    concurrency: Concurrency = 2
    device: Device = "auto"
    precision: Precision = "auto"
    model_path: ModelPath = None
    lease: Lease = 60.0
    retry_delay: RetryDelay = 5.0
    memory_limit: MemoryLimit = None
    cache_size: CacheSize = 256

    def settings(
        self, *, drain: bool, pipelines: tuple[str, ...], max_records: int | None = None
    ) -> WorkerSettings:
        """Return the settings of a worker; raises UsageError for a value out of range."""
        return WorkerSettings(
            concurrency=self.concurrency,
            drain=drain,
            pipelines=pipelines,
            device=self.device,
            precision=self.precision,
            max_records=max_records,
            model_path=self.model_path,
            lease_seconds=self.lease,
            retry_delay_seconds=self.retry_delay,
            cache_megabytes=self.cache_size,
            memory_limit_megabytes=self.memory_limit,
        )
