"""New generations of the pipeline, each with a backlog of the old one."""

from __future__ import annotations

import random
from contextlib import suppress

import psycopg
import pytest

from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import PgembedError
from pgqueue_embed.lifecycle import alter as altering
from pgqueue_embed.lifecycle.alter import Changes, alter, catch_up
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.generations import successor_of
from tests.chaos.soak.promises import UNTOUCHED_RECORDS
from tests.chaos.soak.state import CALM_SECONDS, Soak
from tests.support.pipelines import prepare_with_fake_model

# Inserted at once before a new generation is made: most of them wait for the old one still.
BACKLOG_RECORDS = 500


def renew(run: Soak) -> None:
    """Make new generations and switch to them."""
    chance = run.plan.chance("generations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(altering, "prepare", prepare_with_fake_model)
        patch.setattr(altering, "check_local_model", lambda _pipeline: None)
        while not run.over.wait(chance.uniform(1.0, 5.0)):
            with suppress(psycopg.Error, PgembedError), connect(run.conninfo) as owner:
                _make_generation(run, owner, chance)
                switch(owner, load_pipeline(owner, "reports"), patience_seconds=20.0)
                run.happened["generations switched"] += 1


def finish(run: Soak, connection: Connection) -> None:
    """Switch to the next generation, if there is one."""
    pipeline = load_pipeline(connection, "reports")
    if successor_of(connection, pipeline) is not None:
        switch(connection, pipeline, patience_seconds=CALM_SECONDS)
        run.happened["generations switched, in the calm"] += 1


def _make_generation(run: Soak, owner: Connection, chance: random.Random) -> None:
    pipeline = load_pipeline(owner, "reports")
    if successor_of(owner, pipeline) is not None:
        return
    first = chance.randint(UNTOUCHED_RECORDS + 1, run.records)
    owner.execute(
        "insert into public.reports (id, body)"
        " select n, 'Report ' || n from generate_series(%s::int, %s) as n"
        " on conflict (id) do update set body = excluded.body || ', again'",
        (first, first + BACKLOG_RECORDS),
    )
    successor = alter(owner, pipeline, Changes(chunk_tokens=16 + 4 * chance.randint(1, 9)))
    if successor is not None and chance.random() < 0.8:
        catch_up(owner, pipeline, successor)
