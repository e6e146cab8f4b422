"""Vector indexes of target tables: which there are, and how a new one is to be built."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass, replace

from psycopg import sql

from pgqueue_embed.db.extension import vector_extension
from pgqueue_embed.db.names import MAX_IDENTIFIER_BYTES, Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import SetupError, UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.target import target_of
from pgqueue_embed.target.parts import LEAVES, largest_part
from pgqueue_embed.vector_search.index_plan import (
    MAX_DIMENSIONS,
    QUANTIZED,
    IndexOptions,
    IndexPlan,
    ServerLimits,
    element_bytes,
    element_type,
    plan_index,
)


@dataclass(frozen=True, kw_only=True)
class VectorIndex:
    """An index of a pipeline's vectors; see the view pgembed.vector_indexes."""

    name: str
    method: str
    quantize: str
    parameters: dict[str, str]
    valid: bool

    def __str__(self) -> str:
        given = "".join(f", {name} {value}" for name, value in self.parameters.items())
        of_what = "" if self.quantize == "none" else f" of {self.quantize}"
        return f"{self.name} ({self.method}{of_what}{given})"


INDEXES = """
select index_name, method, quantize, parameters, is_valid
from pgembed.vector_indexes
where pipeline = %s and is_whole
order by is_valid desc, index_name
"""


def vector_indexes(connection: Connection, pipeline: Pipeline) -> list[VectorIndex]:
    """Return the indexes of all of the pipeline's vectors, valid ones first."""
    return [
        VectorIndex(name=name, method=method, quantize=quantize, parameters=parameters, valid=valid)
        for name, method, quantize, parameters, valid in connection.execute(
            INDEXES, (pipeline.name,)
        )
    ]


def scan_of(connection: Connection, pipeline: Pipeline) -> str:
    """Return what the index holds that searches are ordered by; exact if there is none."""
    query = "select pgembed.search_scan(pipelines) from pgembed.pipelines where id = %s"
    return str(connection.value(query, (pipeline.id,)))


def has_vector_index(connection: Connection, pipeline: Pipeline) -> bool:
    """Return whether a search of the pipeline's vectors can use an index."""
    return any(index.valid for index in vector_indexes(connection, pipeline))


def index_name(
    pipeline: Pipeline, method: str, quantize: str = "none", part: Table | None = None
) -> str:
    """Return the name of the pipeline's index of that kind, or a part's, the same everywhere."""
    stem = f"{(part or pipeline.target).name}_{pipeline.spec.columns.embedding}"
    return shortened(stem, method if quantize == "none" else f"{quantize}_{method}")


def shortened(stem: str, kind: str) -> str:
    """Return the name of an index, as long as PostgreSQL lets it be, and unlike any other's."""
    name = f"{stem}_{kind}"
    if len(name.encode()) <= MAX_IDENTIFIER_BYTES:
        return name
    digest = hashlib.sha256(stem.encode()).hexdigest()[:8]
    end = f"_{digest}_{kind}"
    room = MAX_IDENTIFIER_BYTES - len(end)
    return stem.encode()[:room].decode(errors="ignore") + end


def plan(connection: Connection, pipeline: Pipeline, options: IndexOptions) -> IndexPlan:
    """Return how the index of `options` is to be built on this server.

    Raises UsageError when the vectors have too many dimensions for such an index or the target
    table is gone, SetupError when pgvector is too old for it.
    """
    options = _of_vectors(pipeline, options)
    check_indexable(pipeline.spec, pipeline.dimensions, options)
    _check_version(connection, options)
    element = element_type(pipeline.spec.vector_type, options.quantize)
    rows = count_vectors(connection, pipeline)
    parts, largest_share = largest_part(connection, pipeline.target)
    return plan_index(
        options,
        rows=rows,
        vector_bytes=element_bytes(element, pipeline.dimensions),
        limits=_read_limits(connection),
        parts=parts,
        largest_share=largest_share,
    )


def _of_vectors(pipeline: Pipeline, options: IndexOptions) -> IndexOptions:
    """Return the options for vectors that are as small already as they are to be indexed."""
    if QUANTIZED[options.quantize] == pipeline.spec.vector_type:
        return replace(options, quantize="none")
    return options


def declared(spec: PipelineSpec) -> IndexOptions | None:
    """Return the index that a pipeline is to have, or None."""
    if spec.index_method is None:
        return None
    return IndexOptions(method=spec.index_method, quantize=spec.quantize)


def check_declared(spec: PipelineSpec, dimensions: int) -> None:
    """Raise UsageError for a declared index that vectors of so many dimensions cannot have."""
    options = declared(spec)
    if options is not None:
        check_indexable(spec, dimensions, options)


def lacks_declared(connection: Connection, pipeline: Pipeline) -> bool:
    """Return whether an index is declared that is not there yet, and vectors for it are."""
    options = declared(pipeline.spec)
    if options is None:
        return False
    # An index of halfvec that halfvec vectors have is as good as one of the vectors themselves.
    wanted = {options.quantize, _of_vectors(pipeline, options).quantize}
    for each in vector_indexes(connection, pipeline):
        if each.valid and each.method == options.method and each.quantize in wanted:
            return False
    return count_vectors(connection, pipeline) > 0


def plans_that_fit(
    connection: Connection, pipeline: Pipeline, options: IndexOptions
) -> dict[str, IndexPlan]:
    """Return the smaller indexes that could be built in memory, by the options that make them."""
    found = {}
    for flags, other in (
        ("--quantize halfvec", replace(options, quantize="halfvec")),
        ("--quantize binary", replace(options, quantize="binary")),
        ("--method ivfflat", replace(options, method="ivfflat")),
    ):
        with suppress(UsageError, SetupError):
            smaller = plan(connection, pipeline, other)
            if smaller.fits and smaller.quantize == other.quantize:
                found[flags] = smaller
    return found


def plan_of_copies(
    connection: Connection, pipeline: Pipeline, successor: Pipeline
) -> IndexPlan | None:
    """Return how to build for `successor` what indexes the vectors of `pipeline` have.

    Of several, for the one that needs most; None if there is none, or none that can be built: that
    is for the build to say.
    """
    plans = []
    for index in vector_indexes(connection, pipeline):
        given = {name: int(value) for name, value in index.parameters.items()}
        with suppress(UsageError):
            options = IndexOptions(method=index.method, quantize=index.quantize, **given)
            plans.append(plan(connection, successor, options))
    return max(plans, key=lambda each: each.memory_megabytes, default=None)


def check_indexable(spec: PipelineSpec, dimensions: int, options: IndexOptions) -> None:
    """Raise UsageError, naming what fits, for vectors of too many dimensions for such an index."""
    element = element_type(spec.vector_type, options.quantize)
    if dimensions <= MAX_DIMENSIONS[element]:
        return
    fitting = [
        f"--quantize {each} (up to {MAX_DIMENSIONS[QUANTIZED[each]]:,})"
        for each in ("halfvec", "binary")
        if dimensions <= MAX_DIMENSIONS[QUANTIZED[each]]
    ]
    way_out = " or ".join(fitting) or "use a model with fewer dimensions"
    raise UsageError(
        f"{spec.name} has {dimensions:,} dimensions, and pgvector indexes a {element} of up to"
        f" {MAX_DIMENSIONS[element]:,}; {way_out}, or search without an index"
    )


def _check_version(connection: Connection, options: IndexOptions) -> None:
    extension = vector_extension(connection)
    if options.method == "hnsw" and not extension.is_at_least(0, 5):
        raise SetupError(
            f"pgvector {extension.version} has no hnsw (it came with 0.5); use --method ivfflat,"
            " or run: alter extension vector update"
        )
    if options.quantize != "none" and not extension.is_at_least(0, 7):
        raise SetupError(
            f"pgvector {extension.version} cannot index {options.quantize} vectors (they came with"
            " 0.7); use --quantize none, or install a newer one and run: alter extension vector"
            " update"
        )


# The planner's estimate is of the last vacuum or analyze; a small table is counted.
ESTIMATE = """
select sum(greatest(reltuples, 0))::bigint
from leaf
join pg_class on pg_class.oid = relid
"""


def count_vectors(connection: Connection, pipeline: Pipeline) -> int:
    """Return how many vectors there are, of many about; UsageError if the target is gone."""
    target = pipeline.target
    estimate = connection.value(LEAVES + ESTIMATE, {"table": target.quoted})
    if estimate is None:
        raise UsageError(f"the target table {target} is gone; make the pipeline again")
    if estimate > 1_000_000:
        return int(estimate)
    query = sql.SQL("select count(*) from {} as target").format(target_of(pipeline).vector_rows)
    rows = connection.value(query, ())
    return int(rows)


LIMITS = """
select
    pg_size_bytes(current_setting('maintenance_work_mem')),
    pg_size_bytes(current_setting('shared_buffers')),
    current_setting('max_parallel_workers')::integer,
    current_setting('max_parallel_maintenance_workers')::integer,
    host(inet_server_addr())
"""

# A server that is reached by a socket or so runs on this machine, or in a container on it.
LOOPBACK = ("127.0.0.1", "::1")


def _read_limits(connection: Connection) -> ServerLimits:
    memory, buffers, workers, builders, address = connection.row(LIMITS)
    is_here = address is None or address in LOOPBACK
    return ServerLimits(
        processors=os.cpu_count() if is_here else None,
        builds_in_parallel=vector_extension(connection).builds_in_parallel,
        maintenance_work_mem_bytes=memory,
        shared_buffers_bytes=buffers,
        max_parallel_workers=workers,
        max_parallel_maintenance_workers=builders,
    )
