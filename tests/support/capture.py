"""Change capture by a trigger, for tests in which a user changes the source meanwhile."""

from __future__ import annotations

# Every change of public.reports, the source of pipeline 1, queues its key in its own transaction.
CAPTURE = """
create function public.capture() returns trigger language plpgsql as $$
begin
    insert into pgembed.work (pipeline_id, keys, records, priority, known)
    values (1, array[coalesce(new.id, old.id)::text], 1, 0, tg_op <> 'INSERT');
    return null;
end $$;
create trigger capture after insert or update or delete on public.reports
for each row execute function public.capture()
"""
