"""Rights on a table, its parts and its columns, as they are on what replaces it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from psycopg import sql

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.target.parts import TREE, Bounds, parts_of

# Rights of the owner come with the ownership. In one statement: both tables are locked, and there
# may be hundreds of parts.
HELD = TREE + sql.SQL("""
select bounds, nspname, relname, privilege_type, column_name, rolname, is_grantable
from tree
join pg_class on pg_class.oid = relid
join pg_namespace on pg_namespace.oid = relnamespace
left join lateral (
    select null::name as column_name, explode.*
    from aclexplode(relacl) as explode
    union all
    select attname, explode.*
    from pg_attribute
    cross join lateral aclexplode(attacl) as explode
    where attrelid = relid and attnum > 0 and not attisdropped
) as granted on grantee <> relowner
left join pg_roles on pg_roles.oid = grantee
order by relid
""")

COLUMNS = """
select attname
from pg_attribute
where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped
"""

OWNER = "select pg_get_userbyid(relowner) from pg_class where oid = to_regclass(%s)"


@dataclass(frozen=True, kw_only=True)
class Granted:
    """What a `role`, or everybody for None, may do with a table, or with one column of it."""

    privilege: str
    column: str | None
    role: str | None
    may_grant: bool

    def __str__(self) -> str:
        column = "" if self.column is None else f" ({self.column})"
        return f"{self.privilege.lower()}{column} to {self.role or 'public'}"

    def grant(self, table: Table) -> sql.Composed:
        """Return the statement that gives it on `table`."""
        column = sql.SQL("({})").format(sql.Identifier(self.column)) if self.column else sql.SQL("")
        return sql.SQL("grant {} {} on {} to {} {}").format(
            sql.SQL(self.privilege),
            column,
            table.identifier,
            role_of(self.role),
            sql.SQL("with grant option" if self.may_grant else ""),
        )


@dataclass(frozen=True, kw_only=True)
class Held:
    """The rights that others than the owner have on a table."""

    table: Table
    rights: frozenset[Granted]


def role_of(name: str | None) -> sql.Composable:
    """Return a role for GRANT and REVOKE: everybody for None."""
    return sql.SQL("public") if name is None else sql.Identifier(name)


def _owner_of(connection: Connection, table: Table) -> sql.Identifier:
    """Return the role that owns `table`."""
    return sql.Identifier(connection.value(OWNER, (table.quoted,)))


def held_on(connection: Connection, table: Table) -> dict[Bounds, Held]:
    """Return the rights on `table`, without bounds, and on each part of it, by its bounds."""
    tables: dict[Bounds, Table] = {}
    rights: dict[Bounds, set[Granted]] = {}
    for bounds, schema, name, privilege, column, role, may_grant in connection.execute(
        HELD, {"table": table.quoted}
    ):
        tables[tuple(bounds)] = Table(schema=schema, name=name)
        of_table = rights.setdefault(tuple(bounds), set())
        if privilege is not None:
            of_table.add(
                Granted(privilege=privilege, column=column, role=role, may_grant=may_grant)
            )
    return {
        bounds: Held(table=each, rights=frozenset(rights[bounds]))
        for bounds, each in tables.items()
    }


def copy_rights(connection: Connection, old: Table, new: Table) -> None:
    """Give `new` the owner of `old`, and everybody the rights that they have on `old`, no others.

    On a part those that they have on the part with the same bounds, or else on every part of `old`.
    """
    take_owner(connection, old, new)
    before, after = held_on(connection, old), held_on(connection, new)
    columns = {None, *(name for (name,) in connection.execute(COLUMNS, (new.quoted,)))}
    usual = on_every_part(before)
    for bounds, held in after.items():
        wanted = before[bounds].rights if bounds in before else usual
        _make_those(connection, held, {each for each in wanted if each.column in columns})


def on_every_part(held: Mapping[Bounds, Held]) -> frozenset[Granted]:
    """Return the rights that are the same on every part."""
    of_parts = [each.rights for bounds, each in held.items() if bounds]
    return frozenset.intersection(*of_parts) if of_parts else frozenset()


def check_rights(connection: Connection, old: Table, new: Table) -> None:
    """Raise UsageError for rights on single parts of `old` that no part of `new` can take."""
    before, after = held_on(connection, old), held_on(connection, new)
    has_parts = len(after) > 1
    kept = on_every_part(before) if has_parts else before[()].rights
    for bounds, held in before.items():
        lost = held.rights - kept
        if bounds not in after and lost:
            raise UsageError(
                f"{held.table} gives rights that nothing of {new}, which is to take the place of"
                f" {old}, can take over: {', '.join(sorted(map(str, lost)))}; revoke them, and"
                " grant them anew after the switch"
            )


def take_owner(connection: Connection, old: Table, new: Table) -> None:
    """Give `new`, a table with its parts or a view, the owner of the table `old`."""
    owner = _owner_of(connection, old)
    if owner == _owner_of(connection, new):
        return
    for each in (new, *parts_of(connection, new)):
        query = sql.SQL("alter table {} owner to {}")
        connection.execute(query.format(each.identifier, owner))


def _make_those(connection: Connection, held: Held, wanted: Collection[Granted]) -> None:
    """Let the rights on a table be `wanted`: what default privileges have given may be more."""
    rights = set(held.rights)
    for role in {each.role for each in rights.difference(wanted)}:
        revoke = sql.SQL("revoke all on {} from {} cascade")
        connection.execute(revoke.format(held.table.identifier, role_of(role)))
        # Those whom the role has granted it have lost it, too.
        [rights] = [
            set(each.rights)
            for each in held_on(connection, held.table).values()
            if each.table == held.table
        ]
    for right in sorted(set(wanted) - rights, key=str):
        connection.execute(right.grant(held.table))


# Rights on a column alone, of a table and of its parts; those on the table hold for every column.
ON_COLUMNS = """
with tree as (
    select relid::oid from pg_partition_tree(to_regclass(%(table)s))
    union
    select to_regclass(%(table)s)::oid
)
select nspname, relname, attname = %(new)s, privilege_type, rolname, is_grantable
from tree
join pg_class on pg_class.oid = relid
join pg_namespace on pg_namespace.oid = relnamespace
join pg_attribute on attrelid = relid and attname in (%(old)s, %(new)s)
cross join lateral aclexplode(attacl)
left join pg_roles on pg_roles.oid = grantee
"""


def copy_column_rights(connection: Connection, table: Table, old: str, new: str) -> None:
    """Give everybody the rights on column `new` that they have on `old`, and no others.

    In the parts of `table`, too.
    """
    names = {"table": table.quoted, "old": old, "new": new}
    wanted: dict[Table, set[Granted]] = {}
    there: dict[Table, set[Granted]] = {}
    for schema, name, is_new, privilege, role, may_grant in connection.execute(ON_COLUMNS, names):
        right = Granted(privilege=privilege, column=new, role=role, may_grant=may_grant)
        (there if is_new else wanted).setdefault(Table(schema=schema, name=name), set()).add(right)
    for each in wanted.keys() | there.keys():
        for statement in _changes(each, there.get(each, set()), wanted.get(each, set())):
            connection.execute(statement)


def _changes(table: Table, there: set[Granted], wanted: set[Granted]) -> Iterator[sql.Composed]:
    """Yield what makes the rights on a column those that are wanted."""
    for right in sorted(there - wanted, key=str):
        yield sql.SQL("revoke {} ({}) on {} from {} cascade").format(
            sql.SQL(right.privilege),
            sql.Identifier(right.column or ""),
            table.identifier,
            role_of(right.role),
        )
    for right in sorted(wanted, key=str):
        yield right.grant(table)
