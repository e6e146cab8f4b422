-- depends: 0016_create_search
--
-- Search by words: BM25 over the chunks of a pipeline, beside its vectors. All that is stored is an
-- index over pgembed.terms of a chunk's text, so that PostgreSQL itself keeps it right, whoever
-- writes: one of pg_textsearch where that is there, which ranks by itself, else PostgreSQL's own GIN.
-- With the latter, how common a term is comes from the planner, whose statistics autovacuum keeps; a
-- rare one is counted. It tells no more than the rights and policies of the caller let through.
set local lock_timeout = '5s';

-- An index has what it gave: whoever changes it has to build these indexes anew. Ranges, and not
-- classes: those would depend on the locale of the database.
create function pgembed.terms(document text)
returns tsvector
language plpgsql
immutable
strict
parallel safe
cost 1000
set search_path = pg_catalog, pg_temp
as $function$
declare
    -- A tsvector holds 1 MiB at most, and no text is to be refused for it.
    words text := left(document, 50000);
    pairs tsvector := '';
begin
    -- Chinese, Japanese and Korean have no spaces between words: each two characters are a term.
    if words ~ '[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]' then
        select coalesce(string_agg(pair || ':' || least(at, 16383), ' '), '')::tsvector
        into pairs
        from (
            select at, character || lead(character) over (order by at) as pair
            from unnest(
                string_to_array(
                    regexp_replace(words, '[^\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]+', ' ', 'g'),
                    null
                )
            ) with ordinality as listed (character, at)
        ) as paired
        where strpos(pair, ' ') = 0;
        words := regexp_replace(words, '[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]+', ' ', 'g');
    end if;
    -- A model number is a term as a whole, AB-1234 and AB1234 the same one, and by its parts.
    return pairs || to_tsvector(
        'pg_catalog.simple',
        regexp_replace(
            words,
            '[!-/:-@\[-`{-~\u00a0-\u00bf\u2000-\u206f\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]+',
            ' ',
            'g'
        ) || ' ' || array_to_string(
            array(
                select regexp_replace(parts[1], '[-./_]', '', 'g')
                from regexp_matches(words, '[0-9A-Za-z]+(?:[-./_][0-9A-Za-z]+)+', 'g') as match (parts)
                where parts[1] ~ '[0-9]'
            ),
            ' '
        )
    );
end
$function$;

comment on function pgembed.terms is
    'The terms that a text is found by, of documents and queries alike: words in lower case, each two characters of Chinese, Japanese or Korean, and identifiers with digits as a whole beside their parts. Of 50,000 characters at most. pgembed index --lexical builds an index of it.';

-- An index has what this gave, too. It calls nothing of this schema by name, which whoever writes
-- chunks need not be let into.
create function pgembed.words(terms tsvector)
returns text
language sql
immutable
strict
parallel safe
cost 1000
set search_path = pg_catalog, pg_temp
as $function$
    select coalesce(string_agg(repeat(word, coalesce(cardinality(positions), 1)), ''), '')
    from unnest(terms)
    cross join lateral (
        select translate(
            case
                when octet_length(lexeme) <= 32 then encode(convert_to(lexeme, 'UTF8'), 'hex') || ' '
                else 'z' || md5(lexeme) || ' '
            end,
            '0123456789',
            'ghijklmnop'
        )
    ) as written (word)
$function$;

comment on function pgembed.words is
    'Terms as words of plain letters, which the text parser of any database and locale leaves as they are, each as often as the text has it: its bytes, or, of a long one, its hash. pgembed index --lexical builds an index of it for pg_textsearch.';

create function pgembed.estimated_rows(query text)
returns double precision
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
declare
    plan json;
begin
    execute 'explain (format json) ' || query into plan;
    return (plan -> 0 -> 'Plan' ->> 'Plan Rows')::double precision;
end
$function$;

comment on function pgembed.estimated_rows is
    'How many rows the planner expects of a query, by the statistics of the last analyze. For the other functions.';

create function pgembed.matching(pipeline pgembed.pipelines, term text)
returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $function$
    select format(
        'from %I.%I as target where pgembed.terms(target.%I) operator(pg_catalog.@@) %L::tsquery',
        pipeline.target_schema, pipeline.target_table, pipeline.target_columns ->> 'text_chunk',
        quote_literal(term)
    )
$function$;

comment on function pgembed.matching is
    'The SQL of the chunks that have a term. For the other functions.';

create function pgembed.lexical_terms(pipeline pgembed.pipelines, words text)
returns table (term text, chunks double precision, weight double precision, average_bytes double precision)
language plpgsql
set search_path = pg_catalog, pg_temp
-- A term is looked up in the index, however common the planner takes it to be.
set enable_seqscan = off
as $function$
declare
    counted constant integer := 1000;
    rows_of constant text := format('%I.%I', pipeline.target_schema, pipeline.target_table);
    text_chunk constant text := pipeline.target_columns ->> 'text_chunk';
    total double precision := pgembed.estimated_rows('select from ' || rows_of);
    share constant double precision := case
        when total <= 2 * counted then 100 else 100 * counted / total
    end;
    sampled bigint;
    matching text;
    expected double precision;
    -- What the planner takes a term for that it knows nothing of: no term has a space.
    unknown constant double precision := pgembed.estimated_rows('select ' || pgembed.matching(pipeline, 'no term'));
begin
    -- Whole blocks, always the same: all of a small table.
    execute format(
        'select count(*), avg(octet_length(%I)) from %s tablesample system (%s) repeatable (0)',
        text_chunk, rows_of, share
    )
    into sampled, average_bytes;
    if share = 100 then
        total := sampled;
    end if;
    average_bytes := greatest(coalesce(average_bytes, 1), 1);
    for term in
        select lexeme
        from unnest(pgembed.terms(words))
        order by positions[1]
        -- Of a text that is longer than questions are, its beginning.
        limit 64
    loop
        matching := pgembed.matching(pipeline, term);
        expected := pgembed.estimated_rows('select ' || matching);
        chunks := counted;
        if expected < counted or expected < 1.5 * unknown then
            execute format('select count(*) from (select %s limit %s) as matched', matching, counted)
            into chunks;
        end if;
        if chunks = counted then
            chunks := greatest(counted, expected);
        end if;
        total := greatest(total, chunks);
        continue when chunks = 0;
        weight := ln(1 + (total - chunks + 0.5) / (chunks + 0.5));
        return next;
    end loop;
end
$function$;

comment on function pgembed.lexical_terms is
    'The terms of a query that a pipeline''s chunks have, with how many have it (counted where these are fewer than 1,000, else as the planner estimates it), the weight that BM25 gives it, and the average length of a chunk. For the other functions.';

create function pgembed.lexical_indexes(pipeline pgembed.pipelines)
returns table (scan text, name text, is_hidden boolean)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
-- Its plan takes longer than what it does.
set plan_cache_mode = force_generic_plan
as $function$
begin
    return query
    select
        case amname when 'gin' then 'gin' else 'pg_textsearch' end,
        format('%I.%I', index_namespace.nspname, index.relname),
        row_security_active(indrelid)
    from pg_index
    join pg_depend as of_function
        on of_function.classid = 'pg_class'::regclass
        and of_function.objid = indexrelid
        and of_function.refclassid = 'pg_proc'::regclass
    join pg_class as index on index.oid = indexrelid
    join pg_namespace as index_namespace on index_namespace.oid = index.relnamespace
    join pg_am on pg_am.oid = index.relam
    join pg_class as indexed on indexed.oid = indrelid
    join pg_namespace on pg_namespace.oid = indexed.relnamespace
    where pg_namespace.nspname = pipeline.target_schema
        and indexed.relname = pipeline.target_table
        and pipeline.into_column is null
        and indisvalid
        and indpred is null
        and (amname, refobjid) in (
            ('gin', 'pgembed.terms(text)'::regprocedure), ('bm25', 'pgembed.words(tsvector)'::regprocedure)
        )
    order by amname, 2;
end
$function$;

comment on function pgembed.lexical_indexes is
    'The indexes of words that are there, those of pg_textsearch first, with whether policies hide some of the table from the caller. For the other functions.';

create function pgembed.lexical_scan(pipeline pgembed.pipelines)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $function$
    -- What pg_textsearch ranks by tells how common a term is in what policies hide.
    select scan
    from pgembed.lexical_indexes(pipeline)
    where scan = 'gin' or not is_hidden
    -- Whom the extension is closed to has the other one, if that is there.
    order by
        scan = 'pg_textsearch'
            and exists (
                select
                from pg_extension
                where extname = 'pg_textsearch'
                    and not has_schema_privilege(extnamespace, 'usage')
            ),
        scan desc
    limit 1
$function$;

comment on function pgembed.lexical_scan is
    'The index by which a search by words goes: pg_textsearch or gin, null where there is none. Not the former for whom policies hide a part of the table, nor, where both are there, for who may not use the schema of the extension. For the other functions.';

create function pgembed.lexical_score(pipeline pgembed.pipelines)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $function$
    -- By its index: the less, the better.
    select format(
        'pgembed.words(pgembed.terms(chunk.pgembed_text_chunk)) operator(%1$I.<@>) %1$I.to_bm25query($3::text, %2$L)',
        nspname, lexical_indexes.name
    )
    from pgembed.lexical_indexes(pipeline)
    cross join pg_extension
    join pg_namespace on pg_namespace.oid = extnamespace
    where extname = 'pg_textsearch' and scan = 'pg_textsearch'
    limit 1
$function$;

comment on function pgembed.lexical_score is
    'What pg_textsearch orders the chunks of search_relation by, for the words $3. For the other functions.';

create function pgembed.lexical_statement(
    pipeline pgembed.pipelines, chunk_rows text, condition text, columns text[]
)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $function$
declare
    is_ranked constant boolean := coalesce(pgembed.lexical_scan(pipeline) = 'pg_textsearch', false);
    score constant text := case when is_ranked then pgembed.lexical_score(pipeline) end;
    own constant text := 'key, chunk_index, start_char, end_char, chunk, distance';
    candidate constant text := pgembed.search_candidate(pipeline, chunk_rows, condition, columns);
    asked text;
begin
    select string_agg(format(', pgembed_column_%s', position), '' order by position)
    into asked
    from generate_subscripts(columns, 1) as position;
    if is_ranked then
        -- It is in the order of the index, whose scores would take longer than the search to tell.
        -- Without the index, by a plan for a rare condition, chunks without any word come last: where
        -- the last one has a word, each has.
        return format(
            $statement$
                with candidate as materialized (%s order by %s limit $2),
                ranked as (select *, row_number() over () as rank from candidate)
                select %s%s, -rank as bm25
                from ranked
                where (
                        select pgembed.terms(chunk) operator(pg_catalog.@@) $4::tsquery
                        from ranked
                        order by rank desc
                        limit 1
                    )
                    or pgembed.terms(chunk) operator(pg_catalog.@@) $4::tsquery
                order by rank
            $statement$,
            candidate, score, own, asked
        );
    end if;
    -- Robertson and Zaragoza, The Probabilistic Relevance Framework (2009): k1 is 1.2 and b 0.75.
    return format(
        $statement$
            with candidate as materialized (
                %s and pgembed.terms(chunk.pgembed_text_chunk) operator(pg_catalog.@@) $3::tsquery
                limit $7
            )
            select candidate.*, bm25
            from candidate
            cross join lateral (
                select sum(
                    weight * 2.2 * frequency
                    / (frequency + 1.2 * (0.25 + 0.75 * octet_length(chunk) / $6::double precision))
                ) as bm25
                from unnest(pgembed.terms(chunk)) as present (lexeme, positions, weights)
                join unnest($4::text[], $5::double precision[]) as asked (term, weight)
                    on term = lexeme
                cross join lateral (select cardinality(positions)::double precision as frequency)
                    as counted
            ) as scored
            order by bm25 desc, key, chunk_index
            limit $2
        $statement$,
        candidate
    );
end
$function$;

comment on function pgembed.lexical_statement is
    'The statement of a search by words. Its parameters are the vector, the number of hits and, as lexical_scan says: of gin, which chunks to look at (a tsquery), the terms with their weights, the average length of a chunk in bytes, and at how many chunks to look; of pg_textsearch, the query as words, and the chunks that have any (a tsquery). For the other functions.';

create function pgembed.has_lexical_index(pipeline pgembed.pipelines)
returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $function$
    select pgembed.lexical_scan(pipeline) is not null
$function$;

comment on function pgembed.has_lexical_index is
    'Whether an index of words is there that a search of the caller can go by. For the other functions.';
