-- depends: 0014_create_search_filters
--
-- What a search reads: chunks, and their records.
set local lock_timeout = '5s';

-- By name, since a right to use the schema may be lacking.
create function pgembed.source_lacks(pipeline pgembed.pipelines)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $function$
    with source (oid) as (
        select pg_class.oid
        from pg_class
        join pg_namespace on pg_namespace.oid = relnamespace
        where nspname = pipeline.source_schema and relname = pipeline.source_table
    ),
    lacking (names) as (
        select string_agg(distinct quote_ident(name), ', ')
        from jsonb_to_recordset(
            pipeline.key_columns || pipeline.document_columns || pipeline.copied_columns
        ) as used (name text)
        where not exists (
            select
            from source
            join pg_attribute on attrelid = source.oid
            where attname = used.name and attnum > 0 and not attisdropped
        )
    )
    select case
        when not exists (select from source)
            then format('there is no %I.%I', pipeline.source_schema, pipeline.source_table)
        when names is not null
            then format('%I.%I has no column %s', pipeline.source_schema, pipeline.source_table, names)
    end
    from lacking
$function$;

comment on function pgembed.source_lacks is
    'What a pipeline reads of its source that is not there by its name, as a sentence; null if all is. For the other functions.';

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
