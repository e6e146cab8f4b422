-- depends: 0012_create_source_watch
set local lock_timeout = '5s';

-- Events are written by triggers, whoever changes the rows: a command, a worker, or a person in psql.
-- With their owner's rights, so that no other role needs any on the log.
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
