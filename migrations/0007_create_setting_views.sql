-- depends: 0006_create_failure_views
--
-- The public SQL interface, in which columns are only ever added: how pipelines are set up,
-- and which indexes their vectors have.
set local lock_timeout = '5s';

-- Any index that a search can be ordered by counts, the user's own too: of the vectors themselves by
-- an operator class of the cosine, or of what pgvector makes smaller of them. An access method of
-- another extension calls its operator class by the same name. Of a partitioned table, those of its
-- partitions count as well, but for what is a part of an index of the whole.
create view pgembed.vector_indexes as
select
    pipelines.name as pipeline,
    index.relname::text as index_name,
    amname::text as method,
    indisvalid as is_valid,
    not indisvalid and exists (
        select
        from pg_locks
        where pg_locks.relation in (select relid from pg_partition_tree(target.oid) union select target.oid)
            and database = (select oid from pg_database where datname = current_database())
            and mode = 'ShareUpdateExclusiveLock'
            and granted
    ) as is_building,
    kind.quantize,
    built_with.parameters,
    indpred is null and indrelid = target.oid as is_whole,
    stored.size_bytes,
    stored.live_rows,
    stored.dead_rows,
    case when indpred is null and indrelid <> target.oid then (
        select format('%I.%I', nspname, relname)
        from pg_class
        join pg_namespace on pg_namespace.oid = relnamespace
        where pg_class.oid = indrelid
    ) end as part,
    case
        when (ef_search_scan, ef_search_parameters) = (kind.quantize, built_with.parameters)
        then ef_search_recall
    end as measured_recall
from pgembed.pipelines
join pg_namespace on nspname = target_schema
join pg_class as target on target.relnamespace = pg_namespace.oid and target.relname = target_table
cross join lateral (
    select target.oid as relid
    union all
    select relid from pg_partition_tree(target.oid) where relid <> target.oid
) as part
-- One look-up a table: joined, those of all tables are gone through again for each of them, since
-- they are all called alike, and every index of the database with them.
cross join lateral (
    select attname, attnum
    from pg_attribute
    where attrelid = part.relid and attname = target_columns ->> 'embedding'
    offset 0
) as vectors
cross join lateral (
    select indexrelid, indrelid, indisvalid, indkey, indclass, indexprs, indpred
    from pg_index
    where indrelid = part.relid
    offset 0
) as found
join pg_opclass on pg_opclass.oid = indclass[0]
    and (opcname like '%cosine%' or opcname = 'bit_hamming_ops')
join pg_namespace as extension on extension.oid = opcnamespace
cross join lateral (
    select relname, relam, reloptions, relispartition
    from pg_class
    where pg_class.oid = indexrelid
    offset 0
) as index
join pg_am on pg_am.oid = index.relam
cross join lateral (
    values
        ('none', opcname like '%cosine%' and indkey[0] = attnum),
        (
            'halfvec',
            opcname = 'halfvec_cosine_ops' and pg_get_expr(indexprs, indrelid) in (
                format('(%I)::halfvec(%s)', attname, dimensions),
                format('(%I)::%I.halfvec(%s)', attname, extension.nspname, dimensions)
            )
        ),
        (
            'binary',
            opcname = 'bit_hamming_ops' and pg_get_expr(indexprs, indrelid) in (
                format('(binary_quantize(%I))::bit(%s)', attname, dimensions),
                format('(%I.binary_quantize(%I))::bit(%s)', extension.nspname, attname, dimensions)
            )
        )
) as kind (quantize, is_of_it)
-- An index of the whole is stored with the partitions, each of which has its own.
cross join lateral (
    select
        sum(pg_relation_size(indexrelid))::bigint as size_bytes,
        sum(pg_stat_get_live_tuples(indrelid))::bigint as live_rows,
        sum(pg_stat_get_dead_tuples(indrelid))::bigint as dead_rows
    from (
        select indexrelid
        union all
        select relid from pg_partition_tree(indexrelid) where relid <> indexrelid
    ) as piece (relid)
    cross join lateral (
        select indexrelid, indrelid
        from pg_index
        join pg_class on pg_class.oid = indexrelid
        where indexrelid = piece.relid and relkind = 'i'
        offset 0
    ) as stored_piece
) as stored
cross join lateral (
    select coalesce(jsonb_object_agg(split_part(option, '=', 1), split_part(option, '=', 2)), '{}')
    from unnest(index.reloptions) as option
) as built_with (parameters)
where kind.is_of_it and not index.relispartition;

comment on view pgembed.vector_indexes is 'The vector indexes of the pipelines'' targets.';
comment on column pgembed.vector_indexes.pipeline is 'Its name.';
comment on column pgembed.vector_indexes.index_name is 'The index.';
comment on column pgembed.vector_indexes.method is 'hnsw, ivfflat or that of another extension.';
comment on column pgembed.vector_indexes.is_valid is
    'A search can use it; false while it is built, and if that was cut short.';
comment on column pgembed.vector_indexes.is_building is
    'It is not valid, and a session holds the lock on the table that a build takes, and a vacuum.';
comment on column pgembed.vector_indexes.quantize is
    'What is indexed: none for the vectors themselves, halfvec for 16 bits and binary for one bit of each dimension.';
comment on column pgembed.vector_indexes.parameters is 'What it was built with, such as {"m": "16"}.';
comment on column pgembed.vector_indexes.is_whole is
    'It is of all vectors, and not of those that a condition lets in or of one partition.';
comment on column pgembed.vector_indexes.size_bytes is 'Its size on the disk; 0 while it is empty.';
comment on column pgembed.vector_indexes.live_rows is
    'Rows of its table, as PostgreSQL''s statistics have them.';
comment on column pgembed.vector_indexes.dead_rows is
    'Rows that are gone, and that the next vacuum takes out of the table and of the whole index.';
comment on column pgembed.vector_indexes.part is
    'The partition of all of whose vectors it is; null for an index of the whole, parts of which are not listed, or of what a condition lets in.';
comment on column pgembed.vector_indexes.measured_recall is
    'The share of the nearest chunks that pgembed evaluate found by it, with the ef_search that it kept; null if that was measured of another index.';

-- How pipelines are set up, for people who look: without a right to the table, which has the digests
-- of the model's files and the types that workers need, too.
create view pgembed.settings as
select
    pipelines.name as pipeline,
    replaced.name as next_of,
    pipelines.generation,
    pipelines.source_schema,
    pipelines.source_table,
    (
        select array_agg(part ->> 'name' order by place)
        from jsonb_array_elements(pipelines.key_columns) with ordinality as listed (part, place)
    ) as key_columns,
    pipelines.text_fields,
    pipelines.template,
    pipelines.chunk_template,
    pipelines.where_condition,
    pipelines.target_schema,
    pipelines.target_table,
    pipelines.into_column,
    pipelines.model,
    pipelines.model_revision,
    pipelines.model_fingerprint,
    pipelines.dimensions,
    pipelines.vector_type,
    pipelines.text,
    pipelines.document_prompt,
    pipelines.query_prompt,
    pipelines.chunking,
    pipelines.chunk_tokens,
    pipelines.overlap_tokens,
    pipelines.max_attempts,
    pipelines.priority,
    pipelines.index_method,
    pipelines.quantize,
    pipelines.lexical,
    pipelines.ef_search,
    pipelines.lexical_weight,
    pipelines.created_at,
    pipelines.id as pipeline_id
from pgembed.pipelines
left join pgembed.pipelines as replaced on replaced.id = pipelines.successor_of;

comment on view pgembed.settings is 'How each pipeline is set up.';
comment on column pgembed.settings.pipeline is 'Its name.';
comment on column pgembed.settings.next_of is
    'The pipeline that this one is the next generation of, until it takes its place.';
comment on column pgembed.settings.generation is
    'Raised whenever what is embedded of a record became another thing.';
comment on column pgembed.settings.source_schema is 'Schema of the table or view with the text.';
comment on column pgembed.settings.source_table is 'The table or view with the text.';
comment on column pgembed.settings.key_columns is 'The columns of its key, in order.';
comment on column pgembed.settings.text_fields is
    'Columns that make the document; none where there is a template.';
comment on column pgembed.settings.template is 'Makes the document out of columns; null for none.';
comment on column pgembed.settings.chunk_template is
    'What the model reads for a chunk; null for the chunk alone.';
comment on column pgembed.settings.where_condition is
    'SQL over the source: only rows for which it is true are records.';
comment on column pgembed.settings.target_schema is 'Schema of the table with the vectors.';
comment on column pgembed.settings.target_table is 'The table with the vectors.';
comment on column pgembed.settings.into_column is
    'Column of the source that holds the vectors; null where they have a table of their own.';
comment on column pgembed.settings.model is 'The model''s name or folder.';
comment on column pgembed.settings.model_revision is 'Its revision on the hub, if it came from there.';
comment on column pgembed.settings.model_fingerprint is 'SHA-256 over its files.';
comment on column pgembed.settings.dimensions is 'Length of a vector.';
comment on column pgembed.settings.vector_type is 'vector or halfvec.';
comment on column pgembed.settings.text is
    'The target stores the texts of chunks; else only where they stand in the document.';
comment on column pgembed.settings.document_prompt is 'What the model reads before a text; null for nothing.';
comment on column pgembed.settings.query_prompt is 'What it reads before a query; null for nothing.';
comment on column pgembed.settings.chunking is 'tokens, or none for one chunk a record.';
comment on column pgembed.settings.chunk_tokens is 'Most tokens of a chunk.';
comment on column pgembed.settings.overlap_tokens is
    'Most tokens that a chunk has in common with the one before it.';
comment on column pgembed.settings.max_attempts is
    'Failed attempts after which a record becomes a dead letter.';
comment on column pgembed.settings.priority is
    'Share of a worker''s time: one of 20 gets twice what one of 10 gets.';
comment on column pgembed.settings.index_method is
    'The vector index that workers build once nothing is pending; null for none.';
comment on column pgembed.settings.quantize is 'What that index makes smaller of the vectors: none, halfvec or binary.';
comment on column pgembed.settings.lexical is
    'Workers build an index of the chunks'' words once nothing is pending.';
comment on column pgembed.settings.lexical_weight is
    'Weight of words in hybrid searches that pgembed evaluate has found; null for 0.5.';
comment on column pgembed.settings.ef_search is
    'The hnsw.ef_search that pgembed evaluate has found enough; null where it was not asked.';
comment on column pgembed.settings.created_at is 'When the pipeline was made.';
comment on column pgembed.settings.pipeline_id is 'Its number, which a renamed one keeps.';
