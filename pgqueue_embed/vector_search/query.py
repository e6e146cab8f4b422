"""Semantic search in a pipeline's vectors: the chunks nearest to a query's, in the best order.

What is sent, and how rows are read, is made here once, as steps: `search` sends them over a
session, and a program's own connection of psycopg, of either kind, does as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import sql

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.faults import is_given_back, on_users_tables
from pgqueue_embed.db.session import Connection, NoAnswer, OutOfTime
from pgqueue_embed.db.steps import AnyConnection, Step, Steps, read_on
from pgqueue_embed.errors import (
    MissingRight,
    PgembedError,
    PipelineFault,
    PipelineReplaced,
    SearchTimeout,
    SetupError,
    UntrustedCode,
    UsageError,
)
from pgqueue_embed.pipeline.catalog import currency_read
from pgqueue_embed.pipeline.option import MOST_SHOWN
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.source.trust import trusted
from pgqueue_embed.target import target_of
from pgqueue_embed.untrusted.foreign_text import printable
from pgqueue_embed.vector_search.hit import Hit
from pgqueue_embed.vector_search.known import Known
from pgqueue_embed.vector_search.near import LikeRecord, Near, origin_of
from pgqueue_embed.vector_search.order import Score, in_better_order, wanted_to_order
from pgqueue_embed.vector_search.reading import (
    COMPARING,
    read_by,
    reading_chunks,
    why_unreadable,
)
from pgqueue_embed.vector_search.relation import Relation, related
from pgqueue_embed.vector_search.request import SearchRequest
from pgqueue_embed.vector_search.rights import OWN_TABLES, with_rights_named
from pgqueue_embed.vector_search.scan import Scan, hits_of
from pgqueue_embed.vector_search.together import Spent, timed, together

# A condition is a person's own SQL, which may change nothing and not run for ever. Nor may a
# search by words, of a role whose policies keep it from the index.
CONDITION_SECONDS = 60

# Nothing is taken for deleted here: who searches finds what the policies of the target let him see.
ROLE_AND_WHAT_IT_MAY_SEE = "select current_user, set_config('row_security', 'on', true)"

# Where tables are not as they were: of another generation, or of those that were known.
DOUBTED = (PipelineFault, SetupError, UsageError)

# A program that lends its connection may have less patience.
AT_MOST = """
select set_config('statement_timeout', limited.seconds, true)
from (values (%s::text)) as limited (seconds)
where current_setting('statement_timeout')::interval
    not between interval '1 ms' and limited.seconds::interval
"""


def search(
    connection: psycopg.Connection[Any],
    pipeline: Pipeline,
    near: Near,
    request: SearchRequest,
    score: Score | None = None,
    known: Known | None = None,
) -> list[Hit]:
    """Return the chunks that `request` asks for, best first: never fewer than there are.

    They are nearest to a query's vector, of shape (dimensions,), or to a record, which is not found
    itself. With `score` the first of them are ordered by that. Nothing of it stays in the session.
    Raises PipelineReplaced if the next generation, to which the query's vector may mean nothing,
    has just replaced it; UsageError for a request that cannot be, NotFound for a record without
    vectors, MissingRight for what may not be read, SetupError for a table that is not there, and
    SearchTimeout for what took too long, or waited too long for a lock.
    """
    request.check()
    wanted = wanted_to_order(request, score)
    found = read_on(connection, nearest(connection, pipeline, near, wanted, known))
    return in_better_order(found, request, score)


def search_together(
    connection: psycopg.Connection[Any],
    pipeline: Pipeline,
    near: Sequence[Near],
    request: SearchRequest,
    known: Known,
    spent: Spent,
) -> list[list[Hit]]:
    """Return what `search` finds near each of `near`, read in one transaction.

    An error of one is raised for all of them. What it takes is added to `spent`.
    """
    wanted = wanted_to_order(request, None)
    searches = [nearest(connection, pipeline, each, wanted, known) for each in near]
    found = read_on(connection, timed(together(searches), spent))
    return [in_better_order(each, request, None) for each in found]


def nearest(
    connection: AnyConnection,
    pipeline: Pipeline,
    near: Near,
    request: SearchRequest,
    known: Known | None = None,
) -> Steps[list[Hit]]:
    """Read, in a transaction that is rolled back, what `search` finds before it is ordered anew.

    `known` is what may be known of the pipelines of this database already.
    """
    search = _Search(connection, pipeline, near, request)
    known = known or Known()
    try:
        role = yield from _prepare(request)
        relation = known.relation(pipeline, request, role)
        if relation is not None:
            with suppress(*DOUBTED):
                return (yield from search.answered(search.found(relation)))
        return (yield from search.answered(search.looked_at_anew(known, role)))
    except (UntrustedCode, MissingRight):
        raise
    except DOUBTED as error:
        # Of another generation it may not be so: its vectors are others, and have moved.
        yield from check_present(pipeline)
        if not isinstance(error, PipelineFault):
            raise
        why = yield from why_unreadable(pipeline, error)
        raise _refused(pipeline, near, request, error, why) from None
    except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable, OutOfTime) as error:
        if isinstance(error, NoAnswer):
            raise
        says = f"the search did not end in time: {first_line(error)}; ask for less, or try again"
        raise SearchTimeout(says) from None
    except psycopg.Error as error:
        if request.where is None or connection.closed or is_given_back(error):
            raise
        raise UsageError(f"cannot search{_by_condition(request)}: {first_line(error)}") from None


def _refused(
    pipeline: Pipeline, near: Near, request: SearchRequest, error: PipelineFault, why: str
) -> PgembedError:
    """Return whose fault it is: what was asked for, or the tables, which answer no search then."""
    says = f"cannot search {pipeline.target}"
    has_values = request.where is not None or isinstance(near, LikeRecord)
    if error.is_of_the_table or not has_values:
        return SetupError(f"{says}: {why}")
    return UsageError(f"{says}{_by_condition(request)}: {why}")


def _by_condition(request: SearchRequest) -> str:
    """Return what was searched by, as it was typed."""
    if request.where is None:
        return ""
    typed = (
        f" {printable(request.where, MOST_SHOWN)}" if request.condition_name == "--where" else ""
    )
    return f" by {request.condition_name}{typed}"


class _Search:
    """A search of a pipeline, in a transaction."""

    def __init__(
        self, connection: AnyConnection, pipeline: Pipeline, near: Near, request: SearchRequest
    ) -> None:
        self._connection = connection
        self._pipeline = pipeline
        self._near = near
        self._request = request

    def answered(self, steps: Steps[list[Hit]]) -> Steps[list[Hit]]:
        """Run steps of it; raises MissingRight, after which more can be read."""
        tables = [*OWN_TABLES, *read_by(self._pipeline, self._request)]
        return (yield from with_rights_named(self._connection, tables, steps))

    def looked_at_anew(self, known: Known, role: str) -> Steps[list[Hit]]:
        """Read what is found, once it is known whose code that runs, and by which statement."""
        pipeline, request = self._pipeline, self._request
        reads_source = request.reads_source or not pipeline.spec.text
        trust = yield from trusted(
            pipeline.spec, request.where, searching=True, reads_source=reads_source
        )
        with on_users_tables(self._connection, COMPARING):
            relation = yield from related(self._connection, pipeline, request)
        if relation is None:
            raise _replaced(pipeline)
        if not trust.may_change:
            known.keep(pipeline, request, role, relation)
        return (yield from self.found(relation))

    def found(self, relation: Relation) -> Steps[list[Hit]]:
        """Read what is found; raises PipelineReplaced unless the pipeline is as it was loaded."""
        with on_users_tables(self._connection, COMPARING):
            origin = yield from origin_of(self._pipeline, self._near)
            hits = yield from hits_of(Scan(self._pipeline, relation, self._request, origin))
            yield from check_present(self._pipeline)
            return hits


def _prepare(request: SearchRequest) -> Steps[str]:
    """Limit what the transaction may do and see; returns the role that it is of."""
    [(role, _)] = yield Step(ROLE_AND_WHAT_IT_MAY_SEE)
    if request.where is not None:
        yield Step("set local transaction_read_only = on")
    if request.where is not None or request.words is not None:
        yield Step(AT_MOST, (f"{CONDITION_SECONDS}s",))
    return str(role)


def check_present(pipeline: Pipeline) -> Steps[None]:
    """Raise PipelineReplaced unless the table just read, locked by that, is the pipeline's own."""
    if not (yield from currency_read(pipeline)):
        raise _replaced(pipeline)


def _replaced(pipeline: Pipeline) -> PipelineReplaced:
    return PipelineReplaced(
        f"{pipeline.name} was replaced by its next generation, or dropped, just now; search again"
    )


def has_vectors(connection: Connection, pipeline: Pipeline) -> bool:
    """Return whether there is anything to find; raises SetupError when the target is gone."""
    rows = target_of(pipeline).vector_rows
    query = sql.SQL("select exists (select 1 from {} as target)").format(rows)
    try:
        with reading_chunks(connection, pipeline, COMPARING):
            return bool(connection.value(query, ()))
    except (UntrustedCode, MissingRight):
        raise
    except PipelineFault as error:
        raise SetupError(f"cannot search {pipeline.target}: {error}") from None
