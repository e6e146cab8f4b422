-- depends: 0009_create_keys
--
-- What people call in psql. The program calls the same functions, so that there is one of each.
--
-- They run with the rights of their caller, all but the enqueue of a list of texts: that one checks
-- what it is given, may be granted to a role that has no right on any table of this schema, and is
-- granted to no role. It therefore uses no SQL that is made at run time and no type, cast or
-- function that another role can have made.
--
-- Rows that a policy hides would pass for such as are not there: with row_security off, PostgreSQL
-- raises an error instead.
set local lock_timeout = '5s';

create function pgembed.enqueue(name text, keys text[], out queued bigint)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set row_security = off
as $function$
declare
    pipeline constant pgembed.pipelines := pgembed.find_pipeline(name);
    canonical constant text[] := pgembed.canonical_keys(keys, pipeline);
    -- What waits may be claimed before the changes of this transaction are committed, and may have
    -- been since the snapshot of one that is not READ COMMITTED: then it does not do for the key.
    waiting_suffices constant boolean :=
        pg_current_xact_id_if_assigned() is null
        and current_setting('transaction_isolation') = 'read committed';
    own_transaction constant xid := pg_current_xact_id_if_assigned()::xid;
begin
    -- A drop waits for this transaction then, and finds what it queues.
    perform from pgembed.pipelines where id = pipeline.id for key share;
    if not found then
        queued := pgembed.enqueue(name, keys);
        return;
    end if;
    with listed as materialized (
        select distinct unnest(canonical) as key
    ),
    claimed as materialized (
        select work_id from pgembed.claimed_work
    ),
    queue as (
        select unnest(work.keys) as key, work.id, work.xmin, work.allow_deletes
        from pgembed.work
        where work.pipeline_id = pipeline.id
    ),
    -- Not what is claimed already (see claimed_work); what this transaction has queued itself is.
    waiting as materialized (
        select
            listed.key,
            bool_or(
                queue.id not in (select work_id from claimed)
                and (waiting_suffices or queue.xmin = own_transaction)
            ) as suffices,
            bool_or(
                queue.allow_deletes
                and queue.id not in (select work_id from claimed)
                and (waiting_suffices or queue.xmin = own_transaction)
            ) as tells,
            bool_or(queue.id in (select work_id from claimed)) as in_flight
        from listed
        join queue on queue.key = listed.key
        group by listed.key
    ),
    -- What a scan has queued does not tell that a record may have been deleted, and this call does.
    -- That is no matter of one that has no vectors, nor gets some before.
    wanted as (
        select listed.key, ledger.state is not null or waiting.key is not null as known
        from listed
        left join waiting on waiting.key = listed.key
        left join lateral (
            select state
            from pgembed.records
            where records.pipeline_id = pipeline.id and records.key = pgembed.ledger_key(listed.key)
            limit 1
        ) as ledger on true
        where (
            waiting.tells
            or (waiting.suffices and ledger.state is null and not waiting.in_flight)
        ) is not true
    ),
    numbered as (
        select
            wanted.key,
            known,
            (row_number() over (partition by known order by wanted.key) - 1) / 256 as item
        from wanted
    ),
    -- Not in the key order of bulk loading, so with the priority of changes.
    inserted as (
        insert into pgembed.work (pipeline_id, keys, records, priority, known)
        select pipeline.id, array_agg(numbered.key order by numbered.key), count(*), 0, known
        from numbered
        group by known, item
        returning records
    )
    select coalesce(sum(records), 0) into queued from inserted;
end
$function$;

comment on function pgembed.enqueue(text, text[]) is
    'Queues the records of these keys and returns how many: not those that wait already. A worker embeds what is new or changed, and forgets what the source no longer has.';

-- Whoever may call it, may queue any key of any pipeline.
revoke all on function pgembed.enqueue(text, text[]) from public;

-- The cast may be one that a user has made, so it runs with the rights of the caller.
create function pgembed.enqueue(name text, keys anyarray, out queued bigint)
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
    select pgembed.enqueue(name, keys::text[]);
$function$;

comment on function pgembed.enqueue(text, anyarray) is
    'The same for keys of their own type, such as bigint[] or uuid[]; for a key of several columns, JSON arrays of their values.';

create function pgembed.enqueue(name text, keys text, out queued bigint)
language sql
set search_path = pg_catalog, pg_temp
set row_security = off
as $function$
    select pgembed.enqueue(name, keys::text[]);
$function$;

comment on function pgembed.enqueue(text, text) is
    'The same for an array written as text: ''{4711,4712}''.';

create function pgembed.pause(name text, reason text default '', out in_flight bigint)
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $function$
declare
    pipeline constant pgembed.pipelines := pgembed.find_pipeline(name);
begin
    update pgembed.pipelines
    set state = 'paused', state_reason = coalesce(nullif(reason, ''), 'paused by a person')
    where id = pipeline.id;
    select coalesce(sum(flying.records), 0) into in_flight
    from pgembed.in_flight as flying
    where flying.pipeline = pipeline.name;
end
$function$;

comment on function pgembed.pause is
    'Stops workers from claiming records of the pipeline, and returns how many they hold at this moment: those they finish.';

create function pgembed.resume(name text, out pending bigint)
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $function$
declare
    pipeline constant pgembed.pipelines := pgembed.find_pipeline(name);
begin
    update pgembed.pipelines set state = 'active', state_reason = null where id = pipeline.id;
    select coalesce(sum(records), 0) into pending from pgembed.work where pipeline_id = pipeline.id;
end
$function$;

comment on function pgembed.resume is
    'Lets workers claim records of the pipeline again, and returns how many wait.';
