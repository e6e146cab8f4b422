"""Amounts of work: the full benchmark, or the quick one."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The amounts of work. What a real model embeds is parted among the rounds."""

    maude_records: int = 2_000
    glosses: int = 20_000
    stub_records: int = 20_000
    times_over: dict[str, int] = field(
        default_factory=lambda: {"Wikipedia": 2, "MAUDE": 15, "Tang poems": 5}
    )
    fed_records: tuple[int, int] = (20_000, 60_000)
    poems: int = 4_000
    queue_records: tuple[int, ...] = (1_000_000, 10_000_000)
    claims: int = 1_000
    changes: int = 20_000
    gone_records: tuple[int, ...] = (500_000, 1_000_000, 2_000_000)
    growth_records: int = 20_000
    growth_characters: int = 8_000_000
    mac_counts: tuple[int, ...] = (1, 2, 4, 8, 16)
    window_seconds: float = 5.0
    concurrencies: tuple[int, ...] = (1, 2, 4)
    capture_rows: int = 100_000
    capture_statements: int = 1_000
    fresh_inserts: int = 30
    searched_rows: int = 20_000
    watch_records: int = 10_000_000
    filtered_vectors: int = 1_000_000
    gpu_records: tuple[int, int] = (120_000, 128_000)


FULL = Sizes()
QUICK = Sizes(
    maude_records=60,
    glosses=300,
    stub_records=3_000,
    times_over={},
    fed_records=(3_000, 6_000),
    poems=500,
    queue_records=(1_000_000,),
    claims=200,
    changes=4_000,
    gone_records=(100_000, 200_000, 400_000),
    growth_records=10_000,
    growth_characters=1_000_000,
    mac_counts=(1, 4, 16),
    window_seconds=4.0,
    concurrencies=(1, 2),
    capture_rows=10_000,
    capture_statements=500,
    fresh_inserts=5,
    searched_rows=4_000,
    watch_records=1_000_000,
    filtered_vectors=10_000,
    gpu_records=(40_000, 8_000),
)
QUICK_ROUNDS = 1


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asked for; `postgresql` is the major version of the server."""

    rounds: int
    postgresql: int = 18
    sizes: Sizes
