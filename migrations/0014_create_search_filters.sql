-- depends: 0013_create_event_triggers
--
-- Filters of searches. One is data and not SQL: values become literals, and columns and operators
-- are looked up, so that it may come from anywhere.
set local lock_timeout = '5s';

create type pgembed.hit as (
    key text,
    score double precision,
    chunk_index integer,
    start_char integer,
    end_char integer,
    chunk text
);

comment on type pgembed.hit is
    'A chunk that a search has found. The key is as in pgembed.dead_letters, the score the cosine similarity, -1 to 1.';

create function pgembed.filter_condition(name text, wanted jsonb)
returns text
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $function$
declare
    comparisons constant text[] := array['=', '<>', '<', '<=', '>', '>=', 'like', 'ilike', 'not like', 'not ilike'];
    wrong text;
    compared text;
    advice text;
    parts text[];
begin
    if jsonb_typeof(wanted) = 'null' then
        return name || ' is null';
    end if;
    if jsonb_typeof(wanted) not in ('array', 'object') then
        return format('%s = %L', name, wanted #>> '{}');
    end if;
    select string_agg(quote_literal(comparison), ', ') into wrong
    from jsonb_object_keys(case jsonb_typeof(wanted) when 'object' then wanted else '{}' end)
        as given (comparison)
    where lower(comparison) <> all(comparisons);
    if wrong is not null then
        raise invalid_parameter_value using
            message = format('the filter compares %s by %s', name, wrong),
            hint = 'there are ' || array_to_string(comparisons, ', ');
    end if;
    -- With null it would be true of nothing in SQL, and a list as a text is none that a column has.
    select
        string_agg(quote_literal(comparison), ', '),
        case kind when 'null' then 'null' else 'a list' end,
        case kind
            when 'null' then 'null is compared by = and <>'
            else 'a list is compared by = (one of them) and <> (none of them)'
        end
    into wrong, compared, advice
    from jsonb_each(case jsonb_typeof(wanted) when 'object' then wanted else '{}' end)
        as given (comparison, value)
    cross join jsonb_typeof(value) as typed (kind)
    where kind in ('null', 'array') and comparison not in ('=', '<>')
    group by kind
    order by kind desc
    limit 1;
    if wrong is not null then
        raise invalid_parameter_value using
            message = format('the filter compares %s with %s by %s', name, compared, wrong),
            hint = advice;
    end if;
    -- A list is alternatives, an object conditions of which all must hold.
    if jsonb_typeof(wanted) = 'array' then
        -- Plain values in one, of which there may be thousands, and PostgreSQL makes one look-up.
        select array_agg(format('%s in (%s)', name, listed)) into parts
        from (
            select string_agg(quote_literal(value #>> '{}'), ', ') as listed
            from jsonb_array_elements(wanted)
            where jsonb_typeof(value) not in ('array', 'object', 'null')
        ) as plain
        where listed is not null;
        parts := parts || array(
            select pgembed.filter_condition(name, value)
            from jsonb_array_elements(wanted)
            where jsonb_typeof(value) in ('array', 'object', 'null')
        );
        return coalesce('(' || nullif(array_to_string(parts, ' or '), '') || ')', 'false');
    end if;
    parts := array(
        select case
            when jsonb_typeof(value) = 'array' and key = '=' then pgembed.filter_condition(name, value)
            when jsonb_typeof(value) = 'array' then 'not ' || pgembed.filter_condition(name, value)
            -- PostgreSQL refuses it for a column that is none of JSON.
            when jsonb_typeof(value) = 'object' then format('%s %s %L::jsonb', name, lower(key), value)
            when jsonb_typeof(value) <> 'null' then format('%s %s %L', name, lower(key), value #>> '{}')
            when key = '=' then name || ' is null'
            else name || ' is not null'
        end
        from jsonb_each(wanted)
    );
    return coalesce(nullif(array_to_string(parts, ' and '), ''), 'true');
end
$function$;

comment on function pgembed.filter_condition is
    'The SQL condition of one column of a filter: null, a value, a list of alternatives, or an object of comparisons. For the other functions.';

create function pgembed.search_columns(pipeline pgembed.pipelines)
returns table (name text, qualified text)
language sql
stable
set search_path = pg_catalog, pg_temp
as $function$
    with listed (place, name, number) as (
        select place, attname, attnum
        from (
            values
                (1, format('%I.%I', pipeline.source_schema, pipeline.source_table)),
                (2, format('%I.%I', pipeline.target_schema, pipeline.target_table))
        ) as tables (place, relation)
        join pg_attribute on attrelid = to_regclass(relation)
        where attnum > 0 and not attisdropped
        union all
        -- A text that is not stored is a column of the chunks all the same.
        select 2, (pipeline.target_columns ->> 'text_chunk')::name, null
        where not pipeline.text
    )
    -- What both have under one name is meant of the source.
    select name::text, format('%s.%I', case place when 1 then 'source' else 'chunk' end, name)
    from listed
    where place = 1 or name not in (select name from listed where place = 1)
    order by place, number
$function$;

comment on function pgembed.search_columns is
    'The columns that a condition or a filter can name, in a pipeline''s source and target, as search_relation has them. For the other functions.';

create function pgembed.search_condition(pipeline pgembed.pipelines, filter jsonb)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $function$
declare
    unknown text;
begin
    if jsonb_typeof(filter) <> 'object' then
        raise invalid_parameter_value using
            message = format('a filter is a JSON object, and not: %s', left(filter::text, 100)),
            hint = 'such as {"event_type": "D", "event_date": {">=": "2026-01-01"}}';
    end if;
    select string_agg(quote_literal(key), ', ') into unknown
    from jsonb_object_keys(filter) as given (key)
    where key not in (select name from pgembed.search_columns(pipeline));
    if unknown is not null then
        raise undefined_column using
            message = format(
                'the filter names %s, which neither %I.%I nor %I.%I has', unknown,
                pipeline.source_schema, pipeline.source_table,
                pipeline.target_schema, pipeline.target_table
            ),
            hint = 'there are ' || (
                select string_agg(name, ', ') from pgembed.search_columns(pipeline)
            );
    end if;
    return (
        select string_agg(pgembed.filter_condition(qualified, value), ' and ')
        from jsonb_each(filter)
        join pgembed.search_columns(pipeline) on name = key
    );
end
$function$;

comment on function pgembed.search_condition is
    'The SQL condition of a filter over the columns of a pipeline''s source and target; null for a filter of none. For the other functions.';
