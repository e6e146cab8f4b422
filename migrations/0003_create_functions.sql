-- depends: 0002_create_views
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

create function pgembed.find_pipeline(name text)
returns pgembed.pipelines
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $function$
declare
    pipeline pgembed.pipelines;
    names text;
begin
    select * into pipeline from pgembed.pipelines where pipelines.name = find_pipeline.name;
    if not found then
        select string_agg(pipelines.name, ', ' order by id) into names from pgembed.pipelines;
        raise exception 'there is no pipeline %', quote_nullable(name)
            using
                errcode = 'undefined_object',
                hint = 'there is ' || coalesce(names, 'none yet; make one: pgembed create');
    end if;
    return pipeline;
end
$function$;

comment on function pgembed.find_pipeline is
    'The row of a pipeline; an error that names those there are, if it is none of them. For the other functions.';

create function pgembed.base_type(type regtype)
returns regtype
language sql
stable
set search_path = pg_catalog, pg_temp
as $function$
    with recursive unwrapped (type, beneath) as (
        select pg_type.oid, typbasetype from pg_type where pg_type.oid = base_type.type
        union all
        select pg_type.oid, typbasetype
        from unwrapped
        join pg_type on pg_type.oid = unwrapped.beneath
    )
    select unwrapped.type::regtype from unwrapped where beneath = 0;
$function$;

comment on function pgembed.base_type is
    'The type beneath a domain, or beneath a domain over domains; of any other type, itself. For the other functions.';

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

-- The text of a key is its identity: written as the program writes it (key.py), however it was
-- given. Times depend on DateStyle and TimeZone, which canonical_keys pins.
create function pgembed.key_text(parts text[], types text[])
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $function$
declare
    part json;
    written text[] := '{}';
begin
    if cardinality(parts) <> cardinality(types) then
        raise invalid_parameter_value using message = format('it has %s parts', cardinality(parts));
    end if;
    -- Which JSON would write with a T.
    if types = array['timestamp with time zone'] then
        return parts[1]::timestamptz::text;
    end if;
    for position in 1 .. cardinality(types) loop
        part := case types[position]
            when 'smallint' then to_json(parts[position]::smallint)
            when 'integer' then to_json(parts[position]::integer)
            when 'bigint' then to_json(parts[position]::bigint)
            when 'uuid' then to_json(parts[position]::uuid)
            when 'date' then to_json(parts[position]::date)
            when 'timestamp with time zone' then to_json(parts[position]::timestamptz)
            when 'text' then to_json(parts[position])
        end;
        if part is null then
            raise invalid_parameter_value using message = 'no part of a key is null';
        end if;
        written := written || part::text;
    end loop;
    return case
        when cardinality(types) = 1 then part #>> '{}'
        else '[' || array_to_string(written, ', ') || ']'
    end;
end
$function$;

comment on function pgembed.key_text is
    'The text of a key in queue and ledger, from the values of its columns and their types. For the other functions.';

create function pgembed.canonical_keys(keys text[], pipeline pgembed.pipelines)
returns text[]
language plpgsql
stable
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
declare
    types constant text[] := array(
        select type from jsonb_to_recordset(pipeline.key_columns) as listed (type text)
    );
    -- What a unique index of the source takes: a page holds three of its rows. JSON may write a
    -- character of one byte as six.
    most_bytes constant integer := case when cardinality(types) = 1 then 2684 else 6 * 2684 end;
    key text;
    parts text[];
    written text;
    canonical text[] := '{}';
begin
    if keys is null then
        raise null_value_not_allowed using
            message = 'there are no keys, but null',
            hint = 'give an array, such as array[4711, 4712]';
    end if;
    begin
        foreach key in array keys loop
            parts := case
                when cardinality(types) = 1 then array[key]
                else array(select jsonb_array_elements_text(key::jsonb))
            end;
            written := pgembed.key_text(parts, types);
            if octet_length(written) > most_bytes then
                raise invalid_parameter_value using message =
                    format('it has %s bytes, and a key %s at most', octet_length(written), most_bytes);
            end if;
            canonical := canonical || written;
        end loop;
    exception
        when data_exception then
            raise exception '% cannot be a key of pipeline %: %',
                left(quote_nullable(key), 100), quote_literal(pipeline.name), left(sqlerrm, 200)
                using errcode = 'invalid_parameter_value', hint = (
                    select case
                        when count(*) = 1 then 'its key is '
                        else 'its keys are JSON arrays of '
                    end || string_agg(format('%s (%s)', name, type), ', ')
                    from jsonb_to_recordset(pipeline.key_columns) as listed (name text, type text)
                );
    end;
    return canonical;
end
$function$;

comment on function pgembed.canonical_keys is
    'Keys as they are written in queue and ledger; an error for one that cannot be of the pipeline''s key type. For the other functions.';

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
        select unnest(work.keys) as key, work.id, work.xmin
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
            ) as suffices
        from listed
        join queue on queue.key = listed.key
        group by listed.key
    ),
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
        where waiting.suffices is not true
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

-- Events are written by triggers, whoever changes the rows: a command, a worker, or a person in psql.
-- With their owner's rights, so that nobody needs any on the log.
create function pgembed.log_pipeline_event()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set row_security = off
as $function$
begin
    if old.successor_of is not null and new.name <> old.name then
        insert into pgembed.event_log (kind, pipeline, detail)
        values ('switched', new.name, 'to its next generation');
    elsif new.state <> old.state then
        insert into pgembed.event_log (kind, pipeline, detail)
        values (
            case new.state when 'paused' then 'paused' else 'resumed' end,
            new.name,
            new.state_reason
        );
    end if;
    return null;
end
$function$;

comment on function pgembed.log_pipeline_event is
    'Logs that a pipeline was paused, resumed or switched. For the other functions.';

revoke all on function pgembed.log_pipeline_event() from public;

create trigger pipelines_log_events
    after update of state, name on pgembed.pipelines
    for each row
    when (old.state <> new.state or old.name <> new.name)
    execute function pgembed.log_pipeline_event();

create function pgembed.log_worker_event()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set row_security = off
as $function$
declare
    event text;
    explained text;
begin
    if tg_op = 'INSERT' then
        event := case
            when exists (
                select
                from pgembed.workers
                where stopped_at > clock_timestamp() - interval '5 minutes'
                    and host = new.host
                    and stop_reason like 'crashed:%'
            )
            then 'restarted'
            else 'started'
        end;
        explained := new.device || ' ' || new.precision;
    elsif new.stopped_at is not null and old.stopped_at is null then
        event := case when new.stop_reason like 'crashed:%' then 'crashed' else 'stopped' end;
        explained := regexp_replace(new.stop_reason, '^crashed: ', '');
    elsif new.leases_lost > old.leases_lost then
        event := 'lease lost';
        explained := new.last_error;
    else
        event := 'recovered';
        explained := format(
            'heard of again after %s s', round(extract(epoch from new.heartbeat_at - old.heartbeat_at))
        );
    end if;
    insert into pgembed.event_log (kind, worker_id, host, pid, detail)
    values (event, new.id, new.host, new.pid, explained);
    return null;
end
$function$;

comment on function pgembed.log_worker_event is
    'Logs that a worker process started, ended, lost a lease or is heard of again. For the other functions.';

revoke all on function pgembed.log_worker_event() from public;

create trigger workers_log_start
    after insert on pgembed.workers
    for each row
    execute function pgembed.log_worker_event();

-- Not for every heartbeat.
create trigger workers_log_change
    after update on pgembed.workers
    for each row
    when (
        old.stopped_at is null and new.stopped_at is not null
        or new.leases_lost > old.leases_lost
        or new.heartbeat_at > old.heartbeat_at + interval '45 seconds'
    )
    execute function pgembed.log_worker_event();
