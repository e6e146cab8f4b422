-- depends: 0011_create_retry
--
-- What a source is made of is watched: where it has changed, all records are compared.
set local lock_timeout = '5s';

-- Called by triggers, in anybody's transaction. One that waits does for this transaction, too, if no
-- worker can begin it before the commit: whoever finds it keeps it locked until then, as others may.
-- Under a snapshot for the whole transaction the lock might fail, and with it the writer.
create function pgembed.queue_comparison(pipeline_id bigint)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
begin
    if current_setting('transaction_isolation') = 'read committed'
        and has_table_privilege('pgembed.work', 'select')
        and has_table_privilege('pgembed.work', 'update')
    then
        perform
        from pgembed.work
        where work.pipeline_id = queue_comparison.pipeline_id and compare_after = ''
        for share skip locked
        limit 1;
        if found then
            return;
        end if;
    end if;
    insert into pgembed.work (pipeline_id, keys, records, priority, known, compare_after)
    values (queue_comparison.pipeline_id, '{}', 0, 0, true, '');
end
$function$;

comment on function pgembed.queue_comparison is
    'Queues a comparison of the whole source with the ledger, unless one waits that will begin after this transaction. For the other functions.';

-- What a source is made of, apart from its rows. A file is another one once a table was rewritten, by
-- ALTER TABLE … TYPE … USING for example, but also by VACUUM FULL, which changes no row. An enum
-- counts with its labels, which can be renamed, and a row type with its attributes; so do those that
-- an array, a domain, a range or a row type is made of.
create function pgembed.source_identity(pipeline pgembed.pipelines)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $function$
    with recursive family (oid) as (
        select to_regclass(format('%I.%I', pipeline.source_schema, pipeline.source_table))::oid
        union
        select inhrelid from family join pg_inherits on inhparent = family.oid
    ),
    files as (
        select pg_class.oid::text as name, relfilenode::text as value
        from family
        join pg_class on pg_class.oid = family.oid
    ),
    used as (
        select listed.name
        from jsonb_to_recordset(
            pipeline.key_columns || pipeline.document_columns || pipeline.copied_columns
        ) as listed (name text)
    ),
    -- Which others the condition uses is not told here.
    columns as (
        select
            attname,
            attnum,
            atttypid,
            pg_get_expr(adbin, adrelid) as expression
        from pg_attribute
        left join pg_attrdef on adrelid = attrelid and adnum = attnum and attgenerated <> ''
        where attrelid
                = to_regclass(format('%I.%I', pipeline.source_schema, pipeline.source_table))
            and attnum > 0
            and not attisdropped
            and attname <> coalesce(pipeline.into_column, '')
            and (pipeline.where_condition is not null or attname in (select name from used))
    ),
    made_of (attnum, type) as (
        select attnum, atttypid from columns
        union
        select made_of.attnum, beneath.type
        from made_of
        join pg_type on pg_type.oid = made_of.type
        cross join lateral (
            values
                (typbasetype),
                (typelem),
                ((select rngsubtype from pg_range where rngtypid = pg_type.oid))
            union all
            select atttypid
            from pg_attribute
            where attrelid = typrelid and pg_attribute.attnum > 0 and not attisdropped
        ) as beneath (type)
        where beneath.type <> 0
    ),
    labels as (
        select attnum, string_agg(enumlabel, ',' order by pg_enum.oid) as value
        from made_of
        join pg_enum on enumtypid = made_of.type
        group by attnum
    ),
    attributes as (
        select
            made_of.attnum,
            string_agg(format('%s %s', attname, atttypid), ',' order by attrelid, pg_attribute.attnum)
                as value
        from made_of
        join pg_type on pg_type.oid = made_of.type
        join pg_attribute on attrelid = typrelid
        where pg_attribute.attnum > 0 and not attisdropped
        group by made_of.attnum
    ),
    described as (
        select encode(sha256(convert_to(
            jsonb_agg(
                jsonb_build_array(
                    attname, columns.attnum, atttypid::text, expression, labels.value,
                    attributes.value
                )
                order by columns.attnum
            )::text, 'UTF8'
        )), 'hex') as value
        from columns
        left join labels on labels.attnum = columns.attnum
        left join attributes on attributes.attnum = columns.attnum
    )
    select jsonb_object_agg(name, value)
    from (select * from files union all select 'columns', value from described) as parts
    where exists (select from files);
$function$;

comment on function pgembed.source_identity is
    'Tables, with their files, and columns of a pipeline''s source: what has to be looked through anew once it is another. Null if there is no such table. For the other functions.';

create function pgembed.notice_changed_sources(out pipeline text)
returns setof text
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
declare
    looked_at record;
begin
    if not has_column_privilege('pgembed.pipelines', 'source_identity', 'update') then
        return;
    end if;
    for looked_at in
        select
            pipelines.id,
            pipelines.name,
            pipelines.source_identity as before,
            pgembed.source_identity(pipelines) as present
        from pgembed.pipelines
        -- Where nothing captures changes, a person has them looked for.
        where exists (
            select
            from pg_proc
            where pronamespace = 'pgembed'::regnamespace
                and proname = format('capture_%s_insert', pipelines.id)
        )
    loop
        continue when looked_at.present is null or looked_at.present = looked_at.before;
        update pgembed.pipelines
        set source_identity = looked_at.present
        where id = looked_at.id and source_identity is not distinct from looked_at.before;
        continue when not found;
        -- A partition that has come without any row is no matter.
        if looked_at.before is null
            or exists (
                select
                from jsonb_each(looked_at.before)
                where looked_at.present -> key is distinct from value
            )
            or exists (
                select
                from jsonb_object_keys(looked_at.present) as added (key)
                where not looked_at.before ? key
                    and pg_relation_size(key::oid::regclass) > 0
            )
        then
            perform pgembed.queue_comparison(looked_at.id);
            pipeline := looked_at.name;
            return next;
        end if;
    end loop;
end
$function$;

comment on function pgembed.notice_changed_sources is
    'Queues a comparison of each source with capture whose tables or columns are others than before, and returns the pipelines; workers call it. For the other functions.';
