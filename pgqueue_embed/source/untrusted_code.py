"""The SQL that finds code of roles with fewer rights than this one, which `trust` asks."""

from __future__ import annotations

from functools import cache

from psycopg import sql

from pgqueue_embed.pipeline.columns import BASE_TYPE

# Trusted are superusers, whoever may act as this role anyway, and whoever may write
# pgembed.pipelines, who decides by a condition there what workers run. That table is found first:
# rights to a column are an error for a table of that name that has no such column.
UNTRUSTED_ROLES = """
pipelines as materialized (
    select pg_class.oid
    from pg_class
    join pg_namespace on pg_namespace.oid = relnamespace
    where nspname = 'pgembed' and relname = 'pipelines'
),
untrusted as materialized (
    select pg_roles.oid, rolname, rolcanlogin
    from pg_roles
    cross join pipelines
    where not rolsuper
        and not pg_has_role(pg_roles.oid, current_user, 'member')
        and not has_table_privilege(pg_roles.oid, pipelines.oid, 'insert')
        and not has_column_privilege(pg_roles.oid, pipelines.oid, 'where_condition', 'update')
)
"""

# Where no such role owns anything in the database, none of its code can be found. PostgreSQL notes
# the owner of every object, or of the table that an index or a row type is of, if that is a role
# that is not built in. What roles of its own have, such as pg_monitor, is their members', and what
# pg_database_owner has is the database's owner's.
ANYTHING_UNTRUSTED = """
with {untrusted_roles}
select exists (
    select
    from untrusted
    join pg_database on datname = current_database()
    where untrusted.oid = datdba
        or exists (
            select
            from pg_shdepend
            where refclassid = 'pg_authid'::regclass
                and refobjid = untrusted.oid
                and deptype = 'o'
                and dbid = pg_database.oid
        )
        or untrusted.oid < {first_normal_oid} and rolcanlogin
        or untrusted.oid >= {first_normal_oid}
            and exists (
                select from pg_auth_members
                where member = untrusted.oid and roleid < {first_normal_oid}
            )
)
"""
FIRST_NORMAL_OID = 16384

# What is looked at are the tables, the partitions and children that are read along, and what lies
# beneath views and rules; then their parts, and by PostgreSQL's own notes of what depends on what,
# the functions, operators and types that these use. What came with PostgreSQL has no such notes.
# Expressions of indexes are simplified for every plan, which runs what is immutable in them; a
# trigger, a default or a constraint is run by writing alone (see SETTINGS of a session). Chunks
# come and go as a whole: foreign keys then read the tables at their other ends, or change them.
# That is done as their owners, but in our session: what they set stays, and what they defer to the
# commit runs with our rights before PostgreSQL 18. Policies are obeyed by
# searches alone: elsewhere PostgreSQL raises where one would apply (see connect). Of the columns,
# only those that are read or occur in a condition count: the types beneath their domains, since
# PostgreSQL knows no casts of domains.
UNTRUSTED = """
with recursive {untrusted_roles},
given as materialized (
    select pg_class.oid, listed.is_source, listed.is_written
    from (
        values
            (%(source_schema)s, %(source)s, true, %(writes_source)s),
            (%(target_schema)s, %(target)s, false, %(writes_target)s)
    ) as listed (schema, name, is_source, is_written)
    join pg_namespace on nspname = listed.schema
    join pg_class on relnamespace = pg_namespace.oid and relname = listed.name
),
reached (oid, is_written) as (
    select oid, is_written from given
    union
    select next.oid, next.is_written
    from reached
    cross join lateral (
        select inhrelid, reached.is_written
        from pg_inherits
        where inhparent = reached.oid
        union all
        select pg_depend.refobjid, reached.is_written
        from pg_class
        join pg_rewrite on ev_class = pg_class.oid
        join pg_depend
            on classid = 'pg_rewrite'::regclass
            and objid = pg_rewrite.oid
            and refclassid = 'pg_class'::regclass
            and refobjid <> reached.oid
        where pg_class.oid = reached.oid and (relkind = 'v' or reached.is_written)
        union all
        select
            tgconstrrelid,
            conrelid <> reached.oid
                and (confdeltype in ('c', 'n', 'd') or confupdtype in ('c', 'n', 'd'))
        from pg_trigger
        join pg_constraint on pg_constraint.oid = tgconstraint
        where tgrelid = reached.oid
            and tgconstrrelid <> 0
            and reached.is_written
            and %(writes_target)s
            and not %(writes_source)s
    ) as next (oid, is_written)
),
relations as materialized (
    select reached.oid, bool_or(is_written) as is_written, relkind, relowner
    from reached
    join pg_class on pg_class.oid = reached.oid
    group by reached.oid, relkind, relowner
),
parts (classid, objid) as (
    select 'pg_class'::regclass, oid from relations
    union all
    select 'pg_class'::regclass, indexrelid from pg_index join relations on oid = indrelid
    union all
    select 'pg_constraint'::regclass, pg_constraint.oid
    from pg_constraint
    join relations on relations.oid = conrelid
    where is_written
    union all
    select 'pg_rewrite'::regclass, pg_rewrite.oid
    from pg_rewrite
    join relations on relations.oid = ev_class
    where is_written or relkind = 'v'
    union all
    select 'pg_policy'::regclass, pg_policy.oid
    from pg_policy
    join relations on relations.oid = polrelid
    where %(obeys_policies)s and row_security_active(polrelid)
    union all
    select 'pg_statistic_ext'::regclass, pg_statistic_ext.oid
    from pg_statistic_ext
    join relations on relations.oid = stxrelid
    union all
    select 'pg_trigger'::regclass, pg_trigger.oid
    from pg_trigger
    join relations on relations.oid = tgrelid
    where is_written and not tgisinternal
    union all
    select 'pg_attrdef'::regclass, pg_attrdef.oid
    from pg_attrdef
    join relations on relations.oid = adrelid
    where is_written
),
used (classid, objid) as (
    select refclassid::regclass, refobjid
    from parts
    join pg_depend on pg_depend.classid = parts.classid and pg_depend.objid = parts.objid
    where refclassid in ('pg_proc'::regclass, 'pg_operator'::regclass)
        or refclassid = 'pg_type'::regclass and parts.classid = 'pg_rewrite'::regclass
    union
    select 'pg_type'::regclass, reltype
    from given
    join pg_class on pg_class.oid = given.oid
    where is_source and %(reads_whole_rows)s and reltype <> 0
    union
    select 'pg_proc'::regclass, pg_proc.oid
    from unnest(%(named_schemas)s::text[], %(named)s::text[]) as listed (schema, name)
    join pg_namespace on nspname = schema
    join pg_proc on pronamespace = pg_namespace.oid and proname = name
    union
    select 'pg_operator'::regclass, pg_operator.oid
    from unnest(%(named_schemas)s::text[], %(named)s::text[]) as listed (schema, name)
    join pg_namespace on nspname = schema
    join pg_operator on oprnamespace = pg_namespace.oid and oprname = name
    union
    select 'pg_type'::regclass, pg_type.oid
    from unnest(%(named_schemas)s::text[], %(named)s::text[]) as listed (schema, name)
    join pg_namespace on nspname = schema
    join pg_type on typnamespace = pg_namespace.oid and typname = name
    union
    select
        'pg_type'::regclass,
        case when is_written then atttypid else {base_type} end
    from relations
    -- OFFSET keeps the columns of all other tables from being looked at.
    cross join lateral (
        select atttypid, attname
        from pg_attribute
        where attrelid = relations.oid and attnum > 0 and not attisdropped
        offset 0
    ) as attribute
    where is_written
        or %(columns)s::text[] is null
        or attname = any(%(columns)s::text[])
        or exists (
            select
            from unnest(%(conditions)s::text[]) as given (condition)
            where position('"' in attname) > 0
                or position(lower(attname) in lower(condition)) > 0
        )
),
owned (classid, objid, owner) as (
    select 'pg_class'::regclass, oid, relowner from relations where relkind in ('v', 'f')
    union all
    select classid, objid, proowner from used join pg_proc on pg_proc.oid = objid
    where classid = 'pg_proc'::regclass
    union all
    select classid, objid, oprowner from used join pg_operator on pg_operator.oid = objid
    where classid = 'pg_operator'::regclass
    union all
    select classid, objid, typowner from used join pg_type on pg_type.oid = objid
    where classid = 'pg_type'::regclass
)
select
    exists (select from relations join untrusted on untrusted.oid = relowner),
    current_user,
    (
        select array[pg_describe_object(classid, objid, 0), rolname]
        from owned
        join untrusted on untrusted.oid = owner
        order by classid <> 'pg_class'::regclass, classid, objid
        limit 1
    )
"""


def untrusted_code() -> sql.Composed:
    """Return the long query: one row of whether it may change, this role, and what was found."""
    return sql.SQL(UNTRUSTED).format(
        untrusted_roles=sql.SQL(UNTRUSTED_ROLES), base_type=sql.SQL(BASE_TYPE)
    )


@cache
def anything_untrusted() -> str:
    """Return the short query that says whether the long one can find anything."""
    composed = sql.SQL(ANYTHING_UNTRUSTED).format(
        untrusted_roles=sql.SQL(UNTRUSTED_ROLES), first_normal_oid=FIRST_NORMAL_OID
    )
    return composed.as_string(None)
