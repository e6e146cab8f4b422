"""Checks whose code runs where a pipeline's tables are read and written, and with whose rights.

PostgreSQL runs functions of views, casts of types, expressions of indexes, policies and triggers
with the rights of whoever reads or writes. Where these belong to a role that has fewer rights, that
role would get those of a worker, or of the person who enqueues. It is refused, then: every command
and every worker makes this one check before it touches a table. A plain table whose columns
have types of PostgreSQL's own runs no code of any role, whoever owns it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from psycopg import sql

from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.steps import Step, Steps, run
from pgqueue_embed.errors import UntrustedCode
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.source.condition_names import names_whole_rows, qualified_names
from pgqueue_embed.source.untrusted_code import anything_untrusted, untrusted_code
from pgqueue_embed.untrusted.shell import command


@dataclass(frozen=True, kw_only=True)
class Trust:
    """The tables of `wanted` were checked, and no code of a role with fewer rights was found.

    `may_change` tells that such a role owns one of the tables, and can bring some there any time.
    """

    wanted: PipelineSpec
    may_change: bool
    where: str | None = None
    searching: bool = False
    reads_source: bool = True

    @contextmanager
    def kept(self, connection: Connection) -> Iterator[None]:
        """Run the block only if it is so still; raises UntrustedCode.

        Tables that may change are locked against it between another check and the block: all of it
        is one transaction then.
        """
        if not self.may_change:
            yield
            return
        with connection.transaction():
            run(connection, _locked(self.wanted))
            check_trust(
                connection,
                self.wanted,
                where=self.where,
                searching=self.searching,
                reads_source=self.reads_source,
            )
            yield


def check_trust(
    connection: Connection,
    wanted: PipelineSpec,
    *,
    where: str | None = None,
    searching: bool = False,
    reads_source: bool = True,
) -> Trust:
    """Return that this role may use the tables of `wanted`; `where` is a condition besides its own.

    With `searching`, the target is read and nothing written, and the source is read only if it
    `reads_source`. Raises UntrustedCode if code of a role with fewer rights would run with those of
    this one.
    """
    return run(
        connection, trust_checked(wanted, where, searching=searching, reads_source=reads_source)
    )


def trust_checked(
    wanted: PipelineSpec, where: str | None, *, searching: bool, reads_source: bool
) -> Steps[Trust]:
    """Do what `check_trust` does."""
    if wanted.trust_owners:
        return Trust(wanted=wanted, may_change=False)
    may_change, role, untrusted = False, "", None
    [(is_anything,)] = yield Step(anything_untrusted())
    if is_anything:
        rows = yield Step(untrusted_code(), _values(wanted, where, searching, reads_source))
        may_change, role, untrusted = rows[0] if rows else (True, "", None)
    if untrusted is not None:
        what, owner = untrusted
        tables = f"{wanted.source} or {wanted.target}" if reads_source else wanted.target
        raise UntrustedCode(
            f"{what} is of role {owner} and would run with the rights of role {role} where {tables}"
            f" is used; do it as a role with no more rights than {owner}, or, if the owners of the"
            f" tables are to be trusted: --trust-owners, at create or"
            f" {command('alter', wanted.name)}"
        )
    return Trust(
        wanted=wanted,
        may_change=may_change,
        where=where,
        searching=searching,
        reads_source=reads_source,
    )


def is_anything_untrusted(connection: Connection) -> bool:
    """Return whether the long query can find anything: planning it takes the server 10 ms."""
    return bool(connection.value(anything_untrusted()))


# A table of a trusted owner does not become a trap without the owner, and one of another owner is
# checked again each time it is used.
REMEMBERED_SECONDS = 3.0

_remembered: WeakKeyDictionary[Connection, dict[int, tuple[float, Trust]]] = WeakKeyDictionary()


def check_trust_often(connection: Connection, pipeline: Pipeline) -> Trust:
    """Do what `check_trust` does, for each claim: what was found a moment ago does."""
    remembered = _remembered.setdefault(connection, {})
    seen_at, trust = remembered.get(pipeline.id, (0.0, None))
    too_old = time.monotonic() - seen_at > REMEMBERED_SECONDS
    if trust is None or trust.wanted != pipeline.spec or too_old:
        trust = check_trust(connection, pipeline.spec)
        remembered[pipeline.id] = (time.monotonic(), trust)
    return trust


@contextmanager
def trusting(
    connection: Connection,
    wanted: PipelineSpec,
    *,
    where: str | None = None,
    searching: bool = False,
    reads_source: bool = True,
) -> Iterator[None]:
    """Run the block only if no code of a role with fewer rights can run: see `check_trust`."""
    trust = check_trust(
        connection, wanted, where=where, searching=searching, reads_source=reads_source
    )
    with trust.kept(connection):
        yield


def trusted(
    wanted: PipelineSpec, where: str | None, *, searching: bool, reads_source: bool
) -> Steps[Trust]:
    """Do what `trusting` does, in a transaction and for what follows in it."""
    trust = yield from trust_checked(wanted, where, searching=searching, reads_source=reads_source)
    if trust.may_change:
        yield from _locked(wanted)
        yield from trust_checked(wanted, where, searching=searching, reads_source=reads_source)
    return trust


def _values(
    wanted: PipelineSpec, where: str | None, searching: bool, reads_source: bool
) -> dict[str, Any]:
    conditions = [each for each in (wanted.where, where) if each is not None]
    named = [pair for each in conditions for pair in qualified_names(each)]
    columns = (*wanted.id_fields, *wanted.recipe.names(), *wanted.copy_columns)
    return {
        "source_schema": wanted.source.schema,
        "source": wanted.source.name if reads_source else None,
        "target_schema": wanted.target.schema,
        "target": wanted.target.name,
        "writes_source": wanted.into_column is not None and not searching,
        "writes_target": not searching,
        "columns": list(columns) if reads_source and not searching else None,
        "conditions": conditions,
        "reads_whole_rows": any(names_whole_rows(each) for each in conditions),
        "obeys_policies": searching,
        "named_schemas": [schema for schema, _ in named],
        "named": [name for _, name in named],
    }


# A lock needs a right on the table as a whole; a role that may read some columns goes without.
LOCKABLE = "select has_table_privilege(to_regclass(%s), 'select')"


def _locked(wanted: PipelineSpec) -> Steps[None]:
    for table in (wanted.source, wanted.target):
        [(is_lockable,)] = yield Step(LOCKABLE, (table.quoted,))
        if is_lockable:
            lock = sql.SQL("lock table {} in access share mode")
            yield Step(lock.format(table.identifier))
