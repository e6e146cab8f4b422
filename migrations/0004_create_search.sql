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
    -- In SQL it would be true of nothing, whatever was meant.
    select string_agg(quote_literal(comparison), ', ') into wrong
    from jsonb_each(case jsonb_typeof(wanted) when 'object' then wanted else '{}' end)
        as given (comparison, value)
    where jsonb_typeof(value) = 'null' and comparison not in ('=', '<>');
    if wrong is not null then
        raise invalid_parameter_value using
            message = format('the filter compares %s with null by %s', name, wrong),
            hint = 'null is compared by = and <>';
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

create function pgembed.chunk_rows(pipeline pgembed.pipelines)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $function$
    select case
        when not pipeline.text then format(
            '(select target.*, %s as %I from %I.%I as target)',
            pipeline.chunk_text, named ->> 'text_chunk', pipeline.target_schema, pipeline.target_table
        )
        when pipeline.into_column is null then
            format('%I.%I', pipeline.target_schema, pipeline.target_table)
        else (
            select format(
                '(select %s, 0 as %I, null::integer as %I, null::integer as %I, null::text as %I, source.%I as %I from %I.%I as source)',
                string_agg(
                    format('source.%I as %I', key.value ->> 'name', named_key.name),
                    ', ' order by position
                ),
                named ->> 'chunk_index', named ->> 'start_char', named ->> 'end_char',
                named ->> 'text_chunk', named ->> 'embedding', named ->> 'embedding',
                pipeline.source_schema, pipeline.source_table
            )
            from jsonb_array_elements(pipeline.key_columns) with ordinality as key (value, position)
            join jsonb_array_elements_text(named -> 'fulltext_id')
                with ordinality as named_key (name, position) using (position)
        )
    end
    from (values (pipeline.target_columns)) as columns (named)
$function$;

comment on function pgembed.chunk_rows is
    'The rows of a pipeline''s target in the shape of a table of chunks: with the texts out of the source where they are not stored, and of vectors in a column of the source, without the document. For the other functions.';

create function pgembed.search_relation(pipeline pgembed.pipelines, chunk_rows text, reads_source boolean)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $function$
declare
    named constant jsonb := pipeline.target_columns;
    chunk_columns text;
    same_key text;
begin
    -- Under names that no condition means, beside those columns that the source has none of.
    select string_agg(format('target.%I as %I', name, new_name), ', ') into chunk_columns
    from (
        select name, 'pgembed_key_' || position
        from jsonb_array_elements_text(named -> 'fulltext_id') with ordinality as key (name, position)
        union all
        select named ->> meaning, 'pgembed_' || meaning
        from unnest(array['chunk_index', 'start_char', 'end_char', 'text_chunk', 'embedding']) as meaning
        union all
        select name, name
        from pgembed.search_columns(pipeline)
        where reads_source and starts_with(qualified, 'chunk.')
    ) as selected (name, new_name);
    if reads_source then
        select format(
            ' join %I.%I as source on (%s) = (%s)',
            pipeline.source_schema, pipeline.source_table,
            string_agg(format('source.%I', value ->> 'name'), ', ' order by position),
            string_agg('chunk.pgembed_key_' || position, ', ' order by position)
        )
        into same_key
        from jsonb_array_elements(pipeline.key_columns) with ordinality as key (value, position);
    end if;
    return format(
        '(select %s from %s as target where target.%I is not null) as chunk%s',
        chunk_columns, chunk_rows, named ->> 'embedding', same_key
    );
end
$function$;

comment on function pgembed.search_relation is
    'What a search reads: chunks, out of rows as chunk_rows has them, and their records if wanted. For the other functions.';

create function pgembed.search_key(pipeline pgembed.pipelines)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $function$
    select case
        when count(*) = 1 then 'chunk.pgembed_key_1::text'
        else 'json_build_array(' || string_agg(
            format('chunk.pgembed_key_%s::%s', position, value ->> 'type'), ', ' order by position
        ) || ')::text'
    end
    from jsonb_array_elements(pipeline.key_columns) with ordinality as key (value, position)
$function$;

comment on function pgembed.search_key is
    'The text of a key, as in pgembed.dead_letters, in search_relation. For the other functions.';

create function pgembed.search_distance(pipeline pgembed.pipelines, scan text)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $function$
    select case scan
        when 'none' then
            format('(chunk.pgembed_embedding operator(%1$I.<=>) $1::%1$I.%2$I)', nspname, pipeline.vector_type)
        -- No index has this.
        when 'exact' then
            format('(chunk.pgembed_embedding operator(%1$I.<=>) $1::%1$I.%2$I) + 0', nspname, pipeline.vector_type)
        when 'halfvec' then
            format(
                '(chunk.pgembed_embedding::%1$I.halfvec(%2$s) operator(%1$I.<=>) $1::%1$I.%3$I::%1$I.halfvec(%2$s))',
                nspname, pipeline.dimensions, pipeline.vector_type
            )
        when 'binary' then
            format(
                '(%1$I.binary_quantize(chunk.pgembed_embedding)::bit(%2$s) operator(%1$I.<~>) %1$I.binary_quantize($1::%1$I.%3$I))',
                nspname, pipeline.dimensions, pipeline.vector_type
            )
    end
    from pg_extension
    join pg_namespace on pg_namespace.oid = extnamespace
    where extname = 'vector'
$function$;

comment on function pgembed.search_distance is
    'The distance of a chunk in search_relation from the vector $1, by an index that quantizes so, or as no index has it: exact. For the other functions.';

create function pgembed.candidates(k bigint, scan text)
returns bigint
language sql
immutable
set search_path = pg_catalog, pg_temp
as $function$
    -- Of so many as there never are, all.
    select least(k, 9223372036854775807 / times) * times
    from (values (case scan when 'halfvec' then 2 when 'binary' then 20 else 1 end)) as wanted (times)
$function$;

comment on function pgembed.candidates is
    'How many chunks an index that quantizes so has to name for k hits; these are ordered by their vectors. For the other functions.';

create function pgembed.search_statement(
    pipeline pgembed.pipelines, chunk_rows text, condition text, columns text[], scan text
)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $function$
    select format(
        $statement$
            with candidate as materialized (
                select
                    %s as key,
                    chunk.pgembed_chunk_index as chunk_index,
                    chunk.pgembed_start_char as start_char,
                    chunk.pgembed_end_char as end_char,
                    chunk.pgembed_text_chunk as chunk,
                    %s as distance%s
                from %s
                where %s
                order by %s
                limit pgembed.candidates($2, %L)
            )
            select *, count(*) over () >= pgembed.candidates($2, %L) as is_enough
            from candidate
            order by distance, key, chunk_index
            limit $2
        $statement$,
        pgembed.search_key(pipeline),
        pgembed.search_distance(pipeline, 'none'),
        (
            select string_agg(format(', %s as pgembed_column_%s', name, position), '' order by position)
            from unnest(columns) with ordinality as listed (name, position)
        ),
        pgembed.search_relation(
            pipeline,
            chunk_rows,
            -- Keys and vectors of chunks are no columns of a record.
            condition is not null
                or exists (
                    select
                    from unnest(columns) as listed (name)
                    where not starts_with(name, 'chunk.pgembed_')
                )
        ),
        coalesce('(' || condition || E'\n)', 'true'),
        -- So that pages of chunks that are equally near do not overlap; an index has no such order.
        pgembed.search_distance(pipeline, scan) || case scan when 'exact' then ', key, chunk_index' else '' end,
        scan,
        scan
    )
$function$;

comment on function pgembed.search_statement is
    'The statement of a search, with the vector and the number of hits as its parameters: the candidates that an index names, ordered by their vectors. It is one for SQL and for the program. For the other functions.';

create function pgembed.index_methods(pipeline pgembed.pipelines)
returns text[]
language plpgsql
stable
set search_path = pg_catalog, pg_temp
-- Its plan takes longer than what it does.
set plan_cache_mode = force_generic_plan
as $function$
declare
    target constant regclass := to_regclass(format('%I.%I', pipeline.target_schema, pipeline.target_table));
begin
    return array(
        select distinct amname::text
        from (select target as relid union select relid from pg_partition_tree(target)) as part
        join pg_index on indrelid = part.relid
        join pg_class on pg_class.oid = indexrelid
        join pg_am on pg_am.oid = relam
    );
end
$function$;

comment on function pgembed.index_methods is
    'The access methods by which a pipeline''s target and its parts are indexed. To plan a look at pgembed.vector_indexes takes as long as a search of a small table; this tells where there is nothing to see. For the other functions.';

create function pgembed.search_scan(pipeline pgembed.pipelines)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
-- Its plan takes longer than what it does.
set plan_cache_mode = force_generic_plan
as $function$
begin
    if pgembed.index_methods(pipeline) <@ array['btree', 'hash', 'gin', 'gist', 'spgist', 'brin'] then
        return 'exact';
    end if;
    return coalesce(
        (
            select quantize
            from pgembed.vector_indexes
            where vector_indexes.pipeline = search_scan.pipeline.name and is_valid
            order by is_whole desc, array_position(array['none', 'halfvec', 'binary'], quantize)
            limit 1
        ),
        'exact'
    );
end
$function$;

comment on function pgembed.search_scan is
    'What the index of a pipeline''s vectors holds that searches are ordered by, as in pgembed.vector_indexes; exact where there is none. For the other functions.';

create function pgembed.measured_effort(pipeline pgembed.pipelines, scan text)
returns integer
language sql
stable
set search_path = pg_catalog, pg_temp
as $function$
    select pipeline.ef_search
    where pipeline.ef_search_scan = scan
        and exists (
            select
            from pgembed.vector_indexes
            where vector_indexes.pipeline = measured_effort.pipeline.name
                and is_valid
                and quantize = scan
                and parameters = measured_effort.pipeline.ef_search_parameters
        )
$function$;

comment on function pgembed.measured_effort is
    'The hnsw.ef_search that pgembed evaluate has found enough, if an index is there as the one that it was found for; else null. For the other functions.';

-- pgvector README, "Query Options" and "Iterative Index Scans": hnsw looks at 40 candidates by
-- default and 1,000 at most, ivfflat is to look into the square root of its lists. What was measured
-- to be enough is taken, and a person who has set more for the role or the database keeps it.
create function pgembed.widen_scan(pipeline pgembed.pipelines, k bigint, scan text)
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
    candidates constant bigint := least(1000, pgembed.candidates(k, scan));
    measured integer;
    lists integer;
    wanted jsonb;
    present jsonb;
begin
    if pipeline.ef_search is not null then
        measured := pgembed.measured_effort(pipeline, scan);
    end if;
    if 'ivfflat' = any(pgembed.index_methods(pipeline)) then
        lists := (
            select max(coalesce((parameters ->> 'lists')::integer, 100))
            from pgembed.vector_indexes
            where vector_indexes.pipeline = widen_scan.pipeline.name and method = 'ivfflat'
        );
    end if;
    wanted := jsonb_build_object(
        'hnsw.ef_search', greatest(
            -- 40 is what pgvector takes by itself, and tells nothing of a person's wish.
            nullif(nullif(current_setting('hnsw.ef_search', true), ''), '40')::bigint,
            least(1000, coalesce(case when measured is not null then greatest(measured, candidates) end, greatest(40, 2 * candidates)))
        ),
        'ivfflat.probes', greatest(
            nullif(current_setting('ivfflat.probes', true), '')::bigint,
            ceil(sqrt(coalesce(lists, 1)))
        )
    );
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
    condition text;
    scan text;
    is_enough boolean;
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
    -- pgvector multiplies in float32, and may round to float16: of far too great and small numbers
    -- it would make a distance that is none.
    query := array(
        select number / largest
        from unnest(query) with ordinality as listed (number, position)
        cross join (select max(abs(number))::double precision from unnest(query) as number) as found (largest)
        order by position
    );
    condition := pgembed.search_condition(pipeline, coalesce(filter, '{}'));
    scan := pgembed.search_scan(pipeline);
    before := pgembed.widen_scan(pipeline, k, scan);
    loop
        execute format(
            'select array_agg(row(key, 1 - distance, chunk_index, start_char, end_char, chunk)::pgembed.hit order by distance, key, chunk_index), bool_or(is_enough) from (%s) as nearest',
            pgembed.search_statement(pipeline, pgembed.chunk_rows(pipeline), condition, '{}', scan)
        )
        into hits, is_enough using query, k;
        -- An index gives up at some time: with a rare condition, before it has found them all.
        exit when scan = 'exact' or is_enough;
        scan := 'exact';
    end loop;
    perform set_config(key, value, true) from jsonb_each_text(before);
    return query select (unnest(hits)).*;
end
$function$;

comment on function pgembed.search is
    'The k chunks nearest to a query''s vector, best first, of those that the filter lets in: all of them, if there are fewer. With the rights of the caller, by the index where there is one and exactly where that gives up.';
