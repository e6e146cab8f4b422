"""What capture has queued, read and taken out of the queue."""

from __future__ import annotations

from pgqueue_embed.connect import Connection

# A sweep has no keys.
SWEEP = "(sweep)"


def captured(connection: Connection) -> list[str]:
    """Return the keys that wait, in order, each as often as it was queued; and empty the queue."""
    rows = connection.execute("delete from pgembed.work returning keys, sweep_after").fetchall()
    return sorted(key for keys, after in rows for key in ([SWEEP] if after is not None else keys))


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
