"""The queued changes of capture, read and taken out of the queue."""

from __future__ import annotations

from pgqueue_embed.db.session import Connection

# Neither has any keys.
SWEEP = "(sweep)"
COMPARISON = "(comparison)"


def captured(connection: Connection) -> list[str]:
    """Return the keys that wait, in order, each as often as it was queued; and empty the queue."""
    rows = connection.execute("delete from pgembed.work returning keys, sweep_after").fetchall()
    return sorted(key for keys, after in rows for key in keys or _without_keys(after))


def _without_keys(sweep_after: str | None) -> list[str]:
    return [COMPARISON if sweep_after is None else SWEEP]


def trace(connection: Connection) -> list[str]:
    """Return what capture has left in the catalogue, on any table."""
    rows = connection.execute(
        """
        select tgrelid::regclass || '.' || tgname from pg_trigger where tgname like 'pgembed%'
        union all
        select proname from pg_proc
        where pronamespace = 'pgembed'::regnamespace and proname like 'capture%'
        union all
        select relname from pg_class
        where relnamespace = 'pgembed'::regnamespace and relname like '%condition%'
        """
    )
    return sorted(name for (name,) in rows)
