"""The owner of the source, who knows of no fault and goes on writing."""

from __future__ import annotations

import random
import time
from contextlib import suppress

import psycopg

from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import PgembedError
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.chaos.soak.promises import UNTOUCHED_RECORDS
from tests.chaos.soak.roles import EMBEDDER, GUEST, as_role
from tests.chaos.soak.state import Soak
from tests.support.corpus import delete_records, set_text, texts
from tests.support.pipelines import REPORTS
from tests.support.rows import one_value

# Few, so that a record finds under a key that was another's the very text that it has.
TEXTS = (*texts(50, chunks=2), None)

# Between a key and the one that its record gets, and gives back.
KEY_DISTANCE = 10_000_000
MOST_KEYS = 20

# On a slow machine the queue would grow for ever otherwise, and no generation be complete.
MOST_CHANGES_WAITING = 100
WAITING = "select count(*) from pgembed.work where priority = 0"


def use(run: Soak) -> None:
    """Change, add and delete records, and enqueue where nothing is captured."""
    chance = run.plan.chance("user")
    while not run.over.is_set():
        with suppress(psycopg.Error, PgembedError), connect(run.conninfo) as user:
            while not run.over.is_set():
                _change(run, user, chance)
                if not run.plan.sync and chance.random() < 0.05:
                    _enqueue(run, chance)
                if chance.random() < 0.1:
                    _have_patience(run, user)
                time.sleep(0.02)


def _have_patience(run: Soak, user: Connection) -> None:
    while one_value(user, WAITING) > MOST_CHANGES_WAITING:
        if run.over.wait(0.5):
            return


def _change(run: Soak, user: Connection, chance: random.Random) -> None:
    key = chance.randint(UNTOUCHED_RECORDS + 1, run.records + run.records // 10)
    what = chance.random()
    if what < 0.05:
        _reuse_keys(user, key, key + chance.randint(0, MOST_KEYS - 1), chance)
        run.happened["keys used again"] += 1
    elif what < 0.25:
        delete_records(user, REPORTS, [key])
    else:
        set_text(user, REPORTS, key, chance.choice(TEXTS))
    run.happened["changes of the source"] += 1


def _reuse_keys(user: Connection, first: int, last: int, chance: random.Random) -> None:
    """Give records other keys, which were others' until then, and theirs to new ones.

    There and back: those far away come home as often as those at home are moved.
    """
    keys = {"first": first, "last": last, "by": KEY_DISTANCE, "body": chance.choice(TEXTS)}
    if chance.random() < 0.5:
        keys.update(first=first + KEY_DISTANCE, last=last + KEY_DISTANCE, by=-KEY_DISTANCE)
    with user.transaction():
        user.execute(
            "delete from public.reports"
            " where id between %(first)s::bigint + %(by)s and %(last)s::bigint + %(by)s",
            keys,
        )
        user.execute(
            "update public.reports set id = id + %(by)s where id between %(first)s and %(last)s",
            keys,
        )
    if chance.random() < 0.7:
        user.execute(
            "insert into public.reports (id, body)"
            " select n, %(body)s from generate_series(%(first)s::bigint, %(last)s) as n"
            " on conflict (id) do update set body = excluded.body",
            keys,
        )


def _enqueue(run: Soak, chance: random.Random) -> None:
    """Enqueue as one who may, or as a role that may not read all of the source just now."""
    role = chance.choice([None, EMBEDDER, GUEST])
    try:
        with connect(as_role(run.conninfo, role)) as own:
            enqueue(own, load_pipeline(own, "reports"), Selection())
        run.happened["enqueued"] += 1
    except PgembedError:
        run.happened["enqueue refused"] += 1
