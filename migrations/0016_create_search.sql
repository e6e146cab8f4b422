-- depends: 0015_create_search_rows
--
-- Search in SQL, for whoever has a vector of a query. It runs with the rights of its caller, and
-- what a policy hides from the caller is not found. A filter is data and not SQL: values become
-- literals, and columns and operators are looked up, so that it may come from anywhere.
set local lock_timeout = '5s';

create function pgembed.search_distance(pipeline pgembed.pipelines, scan text, query text default '$1')
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $function$
    select case scan
        when 'none' then
            format('(chunk.pgembed_embedding operator(%1$I.<=>) %3$s::%1$I.%2$I)', nspname, pipeline.vector_type, query)
        -- No index has this.
        when 'exact' then
            format('(chunk.pgembed_embedding operator(%1$I.<=>) %3$s::%1$I.%2$I) + 0', nspname, pipeline.vector_type, query)
        when 'halfvec' then
            format(
                '(chunk.pgembed_embedding::%1$I.halfvec(%2$s) operator(%1$I.<=>) %4$s::%1$I.%3$I::%1$I.halfvec(%2$s))',
                nspname, pipeline.dimensions, pipeline.vector_type, query
            )
        when 'binary' then
            format(
                '(%1$I.binary_quantize(chunk.pgembed_embedding)::bit(%2$s) operator(%1$I.<~>) %1$I.binary_quantize(%4$s::%1$I.%3$I))',
                nspname, pipeline.dimensions, pipeline.vector_type, query
            )
    end
    from pg_extension
    join pg_namespace on pg_namespace.oid = extnamespace
    where extname = 'vector'
$function$;

comment on function pgembed.search_distance is
    'The distance of a chunk in search_relation from the vector that the SQL query gives, by an index that quantizes so, or as no index has it: exact. For the other functions.';

create function pgembed.candidates(k bigint, scan text, has_condition boolean default false)
returns bigint
language sql
immutable
set search_path = pg_catalog, pg_temp
as $function$
    -- Of so many as there never are, all.
    select least(k, 9223372036854775807 / times) * times
    from (
        select case scan
            when 'binary' then 20
            -- Without a condition an index looks at twice as many as are wanted of it: see widen_scan.
            -- With one, it would look until it has found just these.
            when 'halfvec' then case when has_condition then 4 else 2 end
            else case when has_condition then 2 else 1 end
        end
    ) as wanted (times)
$function$;

comment on function pgembed.candidates is
    'How many chunks an index that quantizes so has to name for k hits; these are ordered by their vectors. For the other functions.';

create function pgembed.search_candidate(
    pipeline pgembed.pipelines,
    chunk_rows text,
    condition text,
    columns text[],
    query text default '$1'
)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $function$
    select format(
        $candidate$
            select
                %s as key,
                chunk.pgembed_chunk_index as chunk_index,
                chunk.pgembed_start_char as start_char,
                chunk.pgembed_end_char as end_char,
                chunk.pgembed_text_chunk as chunk,
                %s as distance%s
            from %s
            where %s
        $candidate$,
        pgembed.search_key(pipeline),
        pgembed.search_distance(pipeline, 'none', query),
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
        coalesce('(' || condition || E'\n)', 'true')
    )
$function$;

comment on function pgembed.search_candidate is
    'The query of the chunks that a search may find, in no order: those that the condition lets in, with what is asked of them. The last condition is open, for more with "and". For the other functions.';

create function pgembed.search_statement(
    pipeline pgembed.pipelines,
    chunk_rows text,
    condition text,
    columns text[],
    scan text,
    query text default '$1'
)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $function$
    select format(
        $statement$
            with candidate as materialized (
                %s
                order by %s
                limit %s
            )
            select *, count(*) over () >= %s as is_enough
            from candidate
            -- Zero is added since PostgreSQL 17 and later trust that the scan names them in the order
            -- of its distances, which it does not (pgvector README, "Iterative Index Scans").
            order by distance + 0, key, chunk_index
            limit $2
        $statement$,
        pgembed.search_candidate(pipeline, chunk_rows, condition, columns, query),
        -- So that pages of chunks that are equally near do not overlap; an index has no such order.
        pgembed.search_distance(pipeline, scan, query) || case scan when 'exact' then ', key, chunk_index' else '' end,
        -- A bit a dimension tells few neighbours apart, so that all that the index has looked at are compared.
        case scan
            when 'binary' then format('greatest(%s, current_setting(''hnsw.ef_search'')::bigint)', wanted)
            else wanted
        end,
        wanted
    )
    from (
        select format('pgembed.candidates($2::bigint, %L, %L)', scan, condition is not null) as wanted
    ) as asked
$function$;

comment on function pgembed.search_statement is
    'The statement of a search, with the vector and the number of hits as its parameters: the candidates that an index names, ordered by their vectors. With another query than $1, the vector is what that gives where the statement stands. It is one for SQL and for the program. For the other functions.';

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
    if pgembed.index_methods(pipeline) <@ array['btree', 'hash', 'gin', 'gist', 'spgist', 'brin', 'bm25'] then
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
-- Scans go on in any order, since a statement orders what they name: in strict order, pgvector drops what
-- it finds late and is nearer than what it named before.
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
            least(1000, case
                when measured is not null and k <= pipeline.ef_search_k then greatest(measured, candidates)
                -- For more than it was measured for, no less than where nobody has measured.
                else greatest(measured, 40, 2 * candidates)
            end)
        ),
        'ivfflat.probes', greatest(
            nullif(current_setting('ivfflat.probes', true), '')::bigint,
            ceil(sqrt(coalesce(lists, 1)))
        )
    );
    if version >= array[0, 8] then
        wanted := wanted || '{"hnsw.iterative_scan": "relaxed_order", "ivfflat.iterative_scan": "relaxed_order"}';
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
    begin
        loop
            execute format(
                -- A vector of zeros alone is like nothing: its distance is no number.
                'select array_agg(row(key, 1 - distance, chunk_index, start_char, end_char, chunk)::pgembed.hit order by distance, key, chunk_index) filter (where distance <> ''NaN''), bool_or(is_enough) from (%s) as nearest',
                pgembed.search_statement(pipeline, pgembed.chunk_rows(pipeline), condition, '{}', scan)
            )
            into hits, is_enough using query, k;
            -- An index gives up at some time: with a rare condition, before it has found them all.
            exit when scan = 'exact' or is_enough;
            scan := 'exact';
        end loop;
    exception
        when undefined_column or undefined_table or invalid_schema_name then
            if pipeline.text or pgembed.source_lacks(pipeline) is null then
                raise;
            end if;
            raise undefined_column using
                message = format(
                    'the texts of %s cannot be read: %s', pipeline.name, pgembed.source_lacks(pipeline)
                ),
                hint = 'if it has another name now, pgembed alter --follow-source finds that';
    end;
    perform set_config(key, value, true) from jsonb_each_text(before);
    return query select (unnest(hits)).*;
end
$function$;

comment on function pgembed.search is
    'The k chunks nearest to a query''s vector, best first, of those that the filter lets in: all of them, if there are fewer. With the rights of the caller, by the index where there is one and exactly where that gives up.';
