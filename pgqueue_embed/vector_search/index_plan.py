"""Plans the build of a vector index: pure numbers, from rows and the server's limits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pgqueue_embed.db.pages import hnsw_vectors_a_page
from pgqueue_embed.errors import UsageError

MEGABYTE = 1024**2

# What an index holds of vectors: themselves, or what pgvector makes smaller of them.
QUANTIZED = {"none": "vector", "halfvec": "halfvec", "binary": "bit"}

# pgvector README, "Indexing": the most dimensions that an index of a type can have.
MAX_DIMENSIONS = {"vector": 2_000, "halfvec": 4_000, "bit": 64_000}
ELEMENT_BITS = {"vector": 32, "halfvec": 16, "bit": 1}

MAX_LISTS = 32_768

# pgvector's own, and the fewest that are taken without being asked for.
USUAL_M = 16
LEAST_USUAL_M = 12
# So much smaller an index is worth fewer neighbours, if it is small by how pages are filled: of
# small vectors, neighbours are most of an index, and what a search finds them by.
WORTH = 1.1
MOST_A_PAGE = 12

# pgvector's own. A large graph has the more places in which a search ends too early, the fewer
# candidates a vector's neighbours were chosen from; a small one has few, and is searched through.
USUAL_EF_CONSTRUCTION = 64
LARGE_EF_CONSTRUCTION = 128
LARGE_GRAPH_ROWS = 100_000

# Even a small server can spare this much for the minutes of a build; a larger one says so by its
# shared_buffers, usually a quarter of its memory.
SPARE_BYTES = 1024 * MEGABYTE

# Beyond these a build on a database that also serves others would take its processors.
MAX_PARALLEL_WORKERS = 4


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """What a person asks for; None stands for a good choice.

    Limits are pgvector's: `m` 2 to 100, `ef_construction` 4 to 1,000 and at least twice `m`.
    """

    method: str = "hnsw"
    quantize: str = "none"
    lists: int | None = None
    m: int | None = None
    ef_construction: int | None = None
    memory_megabytes: int | None = None

    def __post_init__(self) -> None:
        if self.method not in ("hnsw", "ivfflat"):
            raise UsageError(f"--method {self.method}: give hnsw or ivfflat")
        if self.quantize not in QUANTIZED:
            raise UsageError(f"--quantize {self.quantize}: give {', '.join(QUANTIZED)}")
        most = USUAL_M if self.m is None else self.m
        if not 2 <= most <= 100:
            raise UsageError(f"--m {most}: give a number from 2 to 100")
        least = max(4, 2 * most)
        if self.ef_construction is not None and not least <= self.ef_construction <= 1000:
            raise UsageError(
                f"--ef-construction {self.ef_construction}: give a number from {least}"
                f" (twice --m {most}) to 1000"
            )
        if self.lists is not None and not 1 <= self.lists <= MAX_LISTS:
            raise UsageError(f"--lists {self.lists}: give a number from 1 to {MAX_LISTS}")
        if self.lists is not None and self.method == "hnsw":
            raise UsageError("--lists belongs to ivfflat; add --method ivfflat, or leave it out")
        if self.memory_megabytes is not None and self.memory_megabytes < 1:
            raise UsageError(f"--memory {self.memory_megabytes}: give at least 1 megabyte")


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """What the server allows as it is set up.

    `processors` are those of its machine, where that is this one. Not all versions of pgvector
    build an index in parallel without a fault.
    """

    maintenance_work_mem_bytes: int
    shared_buffers_bytes: int
    max_parallel_workers: int
    max_parallel_maintenance_workers: int
    processors: int | None = None
    builds_in_parallel: bool = True


@dataclass(frozen=True, kw_only=True)
class IndexPlan:
    """How one index is built of vectors as `quantize` says; `parameters` are its WITH options.

    What does not fit into `memory_megabytes`, of the `needed_megabytes`, is built on disk. Of a
    partitioned table it is built for one of its `parts` after the other, of up to `part_rows`.
    """

    method: str
    quantize: str
    rows: int
    part_rows: int
    parts: int
    parameters: dict[str, int]
    memory_megabytes: int
    needed_megabytes: int
    parallel_workers: int

    @property
    def fits(self) -> bool:
        """Whether the index is built in memory."""
        return self.needed_megabytes <= self.memory_megabytes


def element_type(vector_type: str, quantize: str) -> str:
    """Return the type that is indexed of vectors of a type: vector, halfvec or bit."""
    return vector_type if quantize == "none" else QUANTIZED[quantize]


def element_bytes(element: str, dimensions: int) -> int:
    """Return how many bytes one of a type has; pgvector README, "Reference"."""
    return 8 + math.ceil(dimensions * ELEMENT_BITS[element] / 8)


def plan_index(
    options: IndexOptions,
    *,
    rows: int,
    vector_bytes: int,
    limits: ServerLimits,
    parts: int = 1,
    largest_share: float = 1.0,
) -> IndexPlan:
    """Return the plan for `rows` vectors of `vector_bytes` each.

    They lie in so many `parts`, the largest of which has `largest_share` of them. Raises UsageError
    for ivfflat without rows: its lists are learnt from them.
    """
    cap = max(SPARE_BYTES, limits.shared_buffers_bytes // 2)
    part_rows = min(rows, math.ceil(rows * largest_share))
    if options.method == "hnsw":
        m = options.m or usual_m(vector_bytes)
        candidates = options.ef_construction or usual_ef_construction(part_rows, m)
        parameters = {"m": m, "ef_construction": candidates}
        needed = hnsw_bytes(part_rows, vector_bytes, m)
        given = min(needed, cap)
    else:
        lists = options.lists or _lists_within(part_rows, vector_bytes, cap)
        parameters = {"lists": lists}
        needed = given = ivfflat_bytes(lists, vector_bytes)
    memory = max(given, limits.maintenance_work_mem_bytes)
    return IndexPlan(
        method=options.method,
        quantize=options.quantize,
        rows=rows,
        part_rows=part_rows,
        parts=parts,
        parameters=parameters,
        memory_megabytes=options.memory_megabytes or math.ceil(memory / MEGABYTE),
        needed_megabytes=math.ceil(needed / MEGABYTE),
        parallel_workers=_parallel_workers(options.method, limits),
    )


def usual_m(vector_bytes: int) -> int:
    """Return pgvector's own m, 16, or as many from 12 on as let a page have a tenth more vectors.

    With 12 instead of 16 a page takes 8 of halfvec(384) instead of 7.
    """
    usual = hnsw_vectors_a_page(vector_bytes, USUAL_M)
    fewer = range(USUAL_M, LEAST_USUAL_M - 1, -1) if usual <= MOST_A_PAGE else ()
    enough = (m for m in fewer if hnsw_vectors_a_page(vector_bytes, m) >= WORTH * usual)
    return next(enough, USUAL_M)


def usual_ef_construction(rows: int, m: int) -> int:
    """Return pgvector's own ef_construction, 64, or 128 for a large graph; at least twice m."""
    usual = LARGE_EF_CONSTRUCTION if rows >= LARGE_GRAPH_ROWS else USUAL_EF_CONSTRUCTION
    return max(usual, 2 * m)


def _parallel_workers(method: str, limits: ServerLimits) -> int:
    """Return how many processes help the one that builds, which works too."""
    if method == "hnsw" and not limits.builds_in_parallel:
        return 0
    wanted = max(
        limits.max_parallel_maintenance_workers,
        min(limits.max_parallel_workers, MAX_PARALLEL_WORKERS),
    )
    return wanted if limits.processors is None else min(wanted, limits.processors - 1)


def recommended_lists(rows: int) -> int:
    """Return the number of lists for `rows` vectors; raises UsageError when there are none.

    pgvector README, "IVFFlat": rows / 1000 up to 1 M rows, and sqrt(rows) above.
    """
    if rows < 1:
        raise UsageError(
            "ivfflat learns its lists from the vectors, and there are none yet;"
            " embed first, or use --method hnsw"
        )
    lists = rows // 1000 if rows <= 1_000_000 else math.isqrt(rows)
    return max(1, min(MAX_LISTS, lists))


def _lists_within(rows: int, vector_bytes: int, cap_bytes: int) -> int:
    lists = recommended_lists(rows)
    while lists > 1 and ivfflat_bytes(lists, vector_bytes) > cap_bytes:
        lists = lists * 9 // 10
    return lists


def hnsw_bytes(rows: int, vector_bytes: int, m: int) -> int:
    """Return about how much memory the graph of `rows` vectors takes while it is built.

    pgvector src/hnsw.h: an element, its vector, and neighbours of 16 bytes, 2 m of them on the
    lowest layer; built beyond this memory, the index takes many times as long.
    """
    return int(1.15 * rows * (vector_bytes + 200 + 2 * m * 16))


def ivfflat_bytes(lists: int, vector_bytes: int) -> int:
    """Return how much memory k-means needs for `lists` centres; with less, the server refuses.

    pgvector src/ivfkmeans.c: 50 samples a list, and a bound for each pair of sample and centre.
    """
    samples = max(10_000, 50 * lists)
    pairs = samples * lists * 4 + 2 * lists * lists * 4
    return int(1.05 * (pairs + (samples + 2 * lists) * (vector_bytes + 16))) + MEGABYTE
