"""The stages of a rehearsal: from `create` to a switch, with real ledger and queue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from time import perf_counter
from unittest.mock import patch

import numpy as np

from benchmarks.database import SPEC, fake_identity
from benchmarks.stub_model import StubModel, default_chunker
from pgqueue_embed.chunking import Chunk, Chunker
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.embedding import DeviceThread
from pgqueue_embed.embedding.rows import Vectors
from pgqueue_embed.lifecycle.alter import Changes, alter, catch_up
from pgqueue_embed.lifecycle.create import Prepared, check_tables, create_pipeline
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.pipeline.catalog import load_pipeline, load_pipelines
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.queue import capture
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.vector_search.index import plan
from pgqueue_embed.vector_search.index_build import build_index
from pgqueue_embed.vector_search.index_plan import IndexOptions
from pgqueue_embed.worker.loop import Shared, run_loop
from pgqueue_embed.worker.settings import WorkerSettings
from tests.support.fakes import FixedPipelines, unit_vector

# Short vectors, so that what is measured is not the disk alone.
DIMENSIONS = 32
LOOPS = 2
SEARCHES = 20

SOURCE = """
create table public.reports (id bigint primary key, body text);
insert into public.reports
select
    n,
    case
        when n %% %(stride)s = 0
        then format('Report %%s: pump %%s stopped after %%s hours.', n, n %% 97, n * 31 %% 1009)
    end
from generate_series(1, %(records)s) as n;
analyze public.reports
"""
# As many of these have a text as of all; that of the others changes, and stays blank.
CHANGE = """
update public.reports
set body = case
    when btrim(body) <> '' then body || ' It was replaced.'
    else coalesce(body || ' ', '')
end
where id / %(stride)s %% %(every)s = 0
"""

SEARCH = "select * from pgembed.search('reports', %s::real[])"

# Every record once in the ledger, with one chunk of its present text.
STRAY = """
select count(*)
from public.reports
full join public.reports_vectors as target on target.fulltext_id = reports.id
where target.text_chunk is distinct from nullif(btrim(reports.body), '')
"""


# With a text and without one.
SETTLED = """
select count(*)
from pgembed.records
join public.reports on reports.id = records.key::bigint
where state = case when coalesce(btrim(body), '') = '' then 'empty' else 'embedded' end
"""


class HashModel(StubModel):
    """Gives each text a vector of its own, at no cost to speak of."""

    dimensions = DIMENSIONS

    def launch(
        self, chunks: Sequence[Chunk], *, length: int | None = None
    ) -> Callable[[], Vectors]:
        """Return what gives vectors of shape (chunks, dimensions)."""
        vectors = np.array([unit_vector(chunk.text, DIMENSIONS) for chunk in chunks], np.float32)
        return lambda: vectors


@dataclass(kw_only=True)
class Rehearsal:
    """A database, how many records there are and are changed, and how the vectors are parted.

    One of `stride` records has a text, and so a vector; the others are empty.
    """

    conninfo: str
    connection: Connection
    records: int
    changes: int
    stride: int = 1
    partition_by: str | None = None

    @property
    def spec(self) -> PipelineSpec:
        """The pipeline."""
        return replace(SPEC, partition_by=self.partition_by)

    @property
    def texts(self) -> int:
        """How many records have a text."""
        return self.records // self.stride

    @cached_property
    def chunker(self) -> Chunker:
        """The chunker of a worker with default settings."""
        return default_chunker()

    def fill(self) -> str:
        """Make the source."""
        for statement in SOURCE.split(";"):
            self.connection.execute(statement, {"records": self.records, "stride": self.stride})
        return f"{self.records:,} records, {self.texts:,} with a text"

    def create(self) -> str:
        """Make the pipeline, and the triggers on its source."""
        records = check_tables(self.connection, self.spec)
        pipeline = create_pipeline(self.connection, self.spec, records, fake_identity(DIMENSIONS))
        capture.install(self.connection, pipeline)
        return f"with sync{f', {self.partition_by}' if self.partition_by else ''}"

    def enqueue(self) -> str:
        """Queue all records."""
        queued = enqueue(self.connection, load_pipeline(self.connection, "reports"), Selection())
        return f"{queued:,} queued"

    def work(self) -> str:
        """Embed what waits, with real loops and the real device thread."""
        pipelines = load_pipelines(self.connection)
        with closing(DeviceThread(HashModel)) as device:
            shared = Shared.of(
                self.conninfo,
                WorkerSettings(concurrency=LOOPS, drain=True),
                worker_id=1,
                device=device,
                served=FixedPipelines(pipelines, self.chunker),
            )
            loops = [threading.Thread(target=run_loop, args=(shared,)) for _ in range(LOOPS)]
            for loop in loops:
                loop.start()
            for loop in loops:
                loop.join()
        if shared.shutdown.failure is not None:
            raise shared.shutdown.failure
        return f"{LOOPS} loops"

    def index(self) -> str:
        """Build the vector index."""
        pipeline = load_pipeline(self.connection, "reports")
        planned = plan(self.connection, pipeline, IndexOptions())
        build_index(self.connection, pipeline, planned)
        return f"{planned.memory_megabytes:,} of {planned.needed_megabytes:,} MB"

    def search(self) -> str:
        """Search, and say how long one takes."""
        taken = []
        for number in range(SEARCHES):
            query = unit_vector(f"query {number}", DIMENSIONS).tolist()
            started = perf_counter()
            found = self.connection.execute(SEARCH, (query,))
            assert len(found.fetchall()) == min(10, self.texts), "a search finds too little"
            taken.append(perf_counter() - started)
        return f"{SEARCHES} searches, {1000 * median(taken):.1f} ms each"

    def change(self) -> str:
        """Change a part of all records, which the triggers queue."""
        return self._change(self.changes)

    def change_few(self) -> str:
        """Change a hundredth of that, beside the index."""
        return self._change(max(1, self.changes // 100))

    def _change(self, changes: int) -> str:
        every = max(1, self.records // changes)
        changed = self.connection.execute(CHANGE, {"every": every, "stride": self.stride}).rowcount
        return f"{changed:,} records"

    def vacuum(self) -> str:
        """Clear away the chunks of before the changes."""
        self.connection.execute("vacuum public.reports_vectors")
        return "target table"

    def alter(self) -> str:
        """Make a next generation, of half precision, and queue all for it."""
        pipeline = load_pipeline(self.connection, "reports")
        module = "pgqueue_embed.lifecycle.alter"
        with (
            patch(f"{module}.prepare", _prepare),
            patch(f"{module}.check_local_model", lambda _: None),
        ):
            successor = alter(self.connection, pipeline, Changes(vector_type="halfvec"))
        assert successor is not None, "another type of vectors needs a next generation"
        return f"{catch_up(self.connection, pipeline, successor):,} queued"

    def switch(self) -> str:
        """Put the next generation, with an index, in the place of the present one."""
        switch(self.connection, load_pipeline(self.connection, "reports"))
        return "with its index"

    def check(self) -> str:
        """Raise AssertionError unless each record has its chunk, and no chunk is left over."""
        stray = self.connection.value(STRAY, ())
        assert not stray, f"{stray:,} records are without their chunk, or chunks without a record"
        settled = self.connection.value(SETTLED, ())
        assert settled == self.records, f"{settled:,} of {self.records:,} records are settled"
        return "each record has its chunk"

    def stages(self) -> dict[str, Callable[[], str]]:
        """Return all stages in order; what they return says what was done."""
        return {
            "fill the source": self.fill,
            "create": self.create,
            "enqueue": self.enqueue,
            "embed all": self.work,
            "change a part": self.change,
            "embed the changes": self.work,
            "vacuum": self.vacuum,
            "index": self.index,
            "search": self.search,
            "change a few": self.change_few,
            "embed them beside the index": self.work,
            "alter: a next generation": self.alter,
            "embed it": self.work,
            "switch": self.switch,
            "search again": self.search,
            "check": self.check,
        }


def _prepare(
    connection: Connection, spec: PipelineSpec, reference: str, revision: str | None = None
) -> Prepared:
    """Do what `create.prepare` does, with a model that no file holds."""
    del reference, revision
    return Prepared(
        spec=spec,
        shape=check_tables(connection, spec),
        model=fake_identity(DIMENSIONS),
        tokenizer=None,
        notes=(),
    )


def rehearsal(
    conninfo: str, records: int, changes: int, stride: int = 1, partition_by: str | None = None
) -> Rehearsal:
    """Return a rehearsal in an empty migrated database."""
    return Rehearsal(
        conninfo=conninfo,
        connection=connect(conninfo),
        records=records,
        changes=changes,
        stride=stride,
        partition_by=partition_by,
    )
