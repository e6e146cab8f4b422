-- depends: 0003_create_functions
--
-- Search in SQL, for whoever has a vector of a query. It runs with the rights of its caller, and
-- what a policy hides from the caller is not found. A filter is data and not SQL: values become
-- literals, and columns and operators are looked up, so that it may come from anywhere.
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
    -- A list is alternatives, an object conditions of which all must hold.
    if jsonb_typeof(wanted) = 'array' then
        parts := array(
            select pgembed.filter_condition(name, value) from jsonb_array_elements(wanted)
        );
        return coalesce('(' || nullif(array_to_string(parts, ' or '), '') || ')', 'false');
    end if;
    parts := array(
        select format('%s %s %L', name, lower(key), value #>> '{}') from jsonb_each(wanted)
    );
    return coalesce(nullif(array_to_string(parts, ' and '), ''), 'true');
end
$function$;

comment on function pgembed.filter_condition is
    'The SQL condition of one column of a filter: null, a value, a list of alternatives, or an object of comparisons. For the other functions.';

create function pgembed.search_condition(pipeline pgembed.pipelines, filter jsonb)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $function$
declare
    columns jsonb;
    unknown text;
begin
    if jsonb_typeof(filter) <> 'object' then
        raise invalid_parameter_value using
            message = format('a filter is a JSON object, and not: %s', left(filter::text, 100)),
            hint = 'such as {"event_type": "D", "event_date": {">=": "2026-01-01"}}';
    end if;
    -- What both have under one name is meant of the source.
    select jsonb_object_agg(attname, format('%s.%I', alias, attname) order by alias) into columns
    from (
        values
            ('chunk', format('%I.%I', pipeline.target_schema, pipeline.target_table)),
            ('source', format('%I.%I', pipeline.source_schema, pipeline.source_table))
    ) as tables (alias, name)
    join pg_attribute on attrelid = to_regclass(tables.name)
    where attnum > 0 and not attisdropped;
    select string_agg(quote_literal(key), ', ') into unknown
    from jsonb_object_keys(filter) as given (key)
    where not columns ? key;
    if unknown is not null then
        raise undefined_column using
            message = format(
                'the filter names %s, which neither %I.%I nor %I.%I has', unknown,
                pipeline.source_schema, pipeline.source_table,
                pipeline.target_schema, pipeline.target_table
            ),
            hint = 'there are ' || (
                select string_agg(given.key, ', ') from jsonb_object_keys(columns) as given (key)
            );
    end if;
    return (
        select coalesce(
            string_agg(pgembed.filter_condition(columns ->> key, value), ' and '), 'true'
        )
        from jsonb_each(filter)
    );
end
$function$;

comment on function pgembed.search_condition is
    'The SQL condition of a filter over the columns of a pipeline''s source and target. For the other functions.';

-- Ordered by the operator itself, so that the index is used; ordered again because an iterative
-- ivfflat scan returns rows in roughly this order only.
create function pgembed.search_statement(pipeline pgembed.pipelines, extension_schema text, filter jsonb, exact boolean)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $function$
declare
    key_columns constant jsonb := pipeline.key_columns;
    named constant jsonb := pipeline.target_columns;
    is_chunked constant boolean := pipeline.into_column is null;
    keys_of_chunk constant text[] := array(
        select format('chunk.%I', case when is_chunked then named_key.name else key.value ->> 'name' end)
        from jsonb_array_elements(key_columns) with ordinality as key (value, position)
        left join jsonb_array_elements_text(named -> 'fulltext_id')
            with ordinality as named_key (name, position) using (position)
        order by position
    );
    types constant text[] := array(
        select value ->> 'type' from jsonb_array_elements(key_columns)
    );
    distance constant text := format(
        '(chunk.%I operator(%I.<=>) $1::%I.%I)',
        named ->> 'embedding', extension_schema, extension_schema, pipeline.vector_type
    );
    source text := '';
begin
    if filter <> '{}' then
        source := format(
            ' join %I.%I as source on (%s) = (%s)',
            pipeline.source_schema, pipeline.source_table,
            array_to_string(keys_of_chunk, ', '),
            (
                select string_agg(format('source.%I', value ->> 'name'), ', ' order by position)
                from jsonb_array_elements(key_columns) with ordinality as key (value, position)
            )
        );
    end if;
    return format(
        $statement$
            with nearest as materialized (
                select %s as key, %s as chunk_index, %s as start_char, %s as end_char,
                    %s as chunk, %s as distance
                from %I.%I as chunk%s
                where chunk.%I is not null and %s
                order by %s
                limit $2
            )
            select array_agg(
                row(key, 1 - distance, chunk_index, start_char, end_char, chunk)::pgembed.hit
                order by distance, key, chunk_index
            )
            from nearest
        $statement$,
        case
            when cardinality(types) = 1 then keys_of_chunk[1] || '::text'
            else 'json_build_array(' || (
                select string_agg(name || '::' || type, ', ' order by position)
                from unnest(keys_of_chunk, types) with ordinality as part (name, type, position)
            ) || ')::text'
        end,
        case when is_chunked then format('chunk.%I', named ->> 'chunk_index') else '0' end,
        case when is_chunked then format('chunk.%I', named ->> 'start_char') else 'null' end,
        case when is_chunked then format('chunk.%I', named ->> 'end_char') else 'null' end,
        case when is_chunked then format('chunk.%I', named ->> 'text_chunk') else 'null' end,
        distance,
        pipeline.target_schema, pipeline.target_table, source,
        named ->> 'embedding',
        pgembed.search_condition(pipeline, filter),
        case when exact then distance || ' + 0' else distance end
    );
end
$function$;

comment on function pgembed.search_statement is
    'The statement of a search, with the vector and the number of hits as its parameters; an exact one uses no index of vectors. For the other functions.';

-- pgvector README, "Query Options" and "Iterative Index Scans": hnsw looks at 40 candidates by
-- default and 1,000 at most, ivfflat is to look into the square root of its lists. A person who has
-- set more for the role or the database keeps it.
create function pgembed.widen_scan(pipeline pgembed.pipelines, k bigint)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
declare
    version constant integer[] := (
        select string_to_array(substring(extversion from '^\d+\.\d+'), '.')::integer[]
        from pg_extension
        where extname = 'vector'
    );
    lists constant integer := (
        select max(coalesce(substring(option from '^lists=(\d+)$')::integer, 100))
        from pg_index
        join pg_class on pg_class.oid = indexrelid
        join pg_am on pg_am.oid = relam and amname = 'ivfflat'
        left join unnest(reloptions) as option on option like 'lists=%'
        where indrelid
            = to_regclass(format('%I.%I', pipeline.target_schema, pipeline.target_table))
    );
    wanted jsonb := jsonb_build_object(
        'hnsw.ef_search', greatest(
            nullif(current_setting('hnsw.ef_search', true), '')::bigint,
            least(1000, greatest(40, 2 * k))
        ),
        'ivfflat.probes', greatest(
            nullif(current_setting('ivfflat.probes', true), '')::bigint,
            ceil(sqrt(coalesce(lists, 1)))
        )
    );
    present jsonb;
begin
    if version >= array[0, 8] then
        wanted := wanted || '{"hnsw.iterative_scan": "strict_order", "ivfflat.iterative_scan": "relaxed_order"}';
    end if;
    select jsonb_object_agg(key, current_setting(key, true)) into present from jsonb_each(wanted);
    perform set_config(key, value, true) from jsonb_each_text(wanted);
    return present;
end
$function$;

comment on function pgembed.widen_scan is
    'Lets the indexes of a pipeline''s vectors look at enough candidates for k hits, until the transaction ends, and returns the settings of before. For the other functions.';

create function pgembed.search(name text, query real[], k integer default 10, filter jsonb default '{}')
returns setof pgembed.hit
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = on
set datestyle = 'ISO, YMD'
set timezone = 'UTC'
as $function$
declare
    pipeline constant pgembed.pipelines := pgembed.find_pipeline(name);
    extension_schema constant text := (
        select nspname
        from pg_extension
        join pg_namespace on pg_namespace.oid = extnamespace
        where extname = 'vector'
    );
    is_indexed constant boolean := exists (
        select
        from pg_index
        join pg_class on pg_class.oid = indexrelid
        join pg_am on pg_am.oid = relam and amname <> 'btree'
        where indrelid = to_regclass(format('%I.%I', pipeline.target_schema, pipeline.target_table))
    );
    hits pgembed.hit[];
    before jsonb;
begin
    if extension_schema is null then
        raise undefined_object using
            message = 'this database has no extension vector',
            hint = 'a superuser makes it: create extension vector';
    end if;
    if k is null or k < 1 or k > 1000000 then
        raise invalid_parameter_value using
            message = format('k is %s', coalesce(k::text, 'null')),
            hint = 'give how many chunks to find, 1 to 1,000,000';
    end if;
    if query is null or cardinality(query) <> pipeline.dimensions then
        raise invalid_parameter_value using
            message = format(
                'the query has %s numbers, and the vectors of %s have %s',
                coalesce(cardinality(query)::text, 'no'), pipeline.name, pipeline.dimensions
            ),
            hint = format('it has to come from the same model, %s', pipeline.model);
    end if;
    if array_position(query, null) is not null or '0' = all(query) or 'NaN' = any(query) then
        raise invalid_parameter_value using
            message = 'the query is no direction: it has a null or NaN, or only zeros',
            hint = 'give the vector that the model made, as it is';
    end if;
    execute format('select $1::%I.vector', extension_schema) using query;
    before := pgembed.widen_scan(pipeline, k);
    execute pgembed.search_statement(pipeline, extension_schema, coalesce(filter, '{}'), false)
        into hits using query, k;
    -- An index gives up at some time: with a rare condition, before it has found them all.
    if is_indexed and coalesce(cardinality(hits), 0) < k then
        execute pgembed.search_statement(pipeline, extension_schema, coalesce(filter, '{}'), true)
            into hits using query, k;
    end if;
    perform set_config(key, value, true) from jsonb_each_text(before);
    return query select (unnest(hits)).*;
end
$function$;

comment on function pgembed.search is
    'The k chunks nearest to a query''s vector, best first, of those that the filter lets in: all of them, if there are fewer. With the rights of the caller, by the index where there is one and exactly where that gives up.';
