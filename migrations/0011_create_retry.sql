-- depends: 0010_create_queue_functions
--
-- Dead letters are put back into the queue.
set local lock_timeout = '5s';

create function pgembed.put_back(pipeline_id bigint, keys text[], out retried bigint)
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $function$
begin
    -- Locked in bytewise key order, as a worker does before it writes: the two cannot deadlock. By
    -- their state, and not by dead_at: an index of the dead alone may have been empty when it was last
    -- analyzed, and then the planner would read all of it for each key.
    with locked as materialized (
        select records.key
        from pgembed.records
        where records.pipeline_id = put_back.pipeline_id
            and records.key = any (
                array(select pgembed.ledger_key(listed) from unnest(keys) as listed)
            )
            and records.state = 'dead'
        order by coalesce(records.long_key, records.key)
        for update
    ),
    taken as (
        update pgembed.records
        set state = null,
            generation = null,
            document_hash = null,
            attempts = 0,
            failed_hash = null,
            last_error = null,
            dead_at = null
        from locked
        where records.pipeline_id = put_back.pipeline_id and records.key = locked.key
        returning coalesce(records.long_key, records.key) as key
    ),
    numbered as (
        select key, (row_number() over (order by key) - 1) / 256 as item from taken
    ),
    -- Not in the key order of bulk loading, so with the priority of changes.
    queued as (
        insert into pgembed.work (pipeline_id, keys, records, priority)
        select put_back.pipeline_id, array_agg(key order by key), count(*), 0
        from numbered
        group by item
    ),
    -- The records leave the state dead and are counted in the queue from now on.
    counted as (
        insert into pgembed.batches (pipeline_id, dead)
        select put_back.pipeline_id, -count(*)
        from taken
        having count(*) > 0
    )
    select count(*) into retried from taken;
end
$function$;

comment on function pgembed.put_back is
    'Puts those of the keys that are dead letters back into the queue, and returns how many were. For retry.';

create function pgembed.retry(name text, out retried bigint)
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $function$
declare
    pipeline constant pgembed.pipelines := pgembed.find_pipeline(name);
begin
    retried := pgembed.put_back(
        pipeline.id,
        array(
            select coalesce(long_key, key)
            from pgembed.records
            where pipeline_id = pipeline.id and dead_at is not null
        )
    );
end
$function$;

comment on function pgembed.retry(text) is
    'Puts all dead letters of the pipeline back into the queue, with all their attempts before them, and returns how many.';

create function pgembed.retry(name text, keys text[], out retried bigint)
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $function$
declare
    pipeline constant pgembed.pipelines := pgembed.find_pipeline(name);
    canonical constant text[] := pgembed.canonical_keys(keys, pipeline);
    alive text;
begin
    select listed.key into alive
    from unnest(canonical) as listed (key)
    where not exists (
        select
        from pgembed.records
        where pipeline_id = pipeline.id
            and records.key = pgembed.ledger_key(listed.key)
            -- See put_back.
            and state = 'dead'
    )
    order by 1
    limit 1;
    if found then
        raise invalid_parameter_value using
            message = format('%s has no dead letter %L, so nothing was put back', pipeline.name, alive),
            hint = 'they are listed in pgembed.dead_letters';
    end if;
    retried := pgembed.put_back(pipeline.id, canonical);
end
$function$;

comment on function pgembed.retry(text, text[]) is
    'The same for the dead letters of these keys; an error, with nothing put back, if one of them is none.';

create function pgembed.retry(name text, keys anyarray, out retried bigint)
language sql
set search_path = pg_catalog, pg_temp
set row_security = off
set datestyle = 'ISO, YMD'
set timezone = 'UTC'
set intervalstyle = 'postgres'
set extra_float_digits = 1
set lc_monetary = 'C'
set bytea_output = 'hex'
set xmlbinary = 'base64'
as $function$
    select pgembed.retry(name, keys::text[]);
$function$;

comment on function pgembed.retry(text, anyarray) is
    'The same for keys of their own type, such as bigint[] or uuid[].';

create function pgembed.retry(name text, keys text, out retried bigint)
language sql
set search_path = pg_catalog, pg_temp
set row_security = off
as $function$
    select pgembed.retry(name, keys::text[]);
$function$;

comment on function pgembed.retry(text, text) is
    'The same for an array written as text: ''{4711,4712}''.';
