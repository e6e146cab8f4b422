"""Rights that an administrator takes away and gives back, one at a time, while all goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.chaos.soak.promises import UNTOUCHED_RECORDS, check_always
from tests.chaos.soak.roles import EMBEDDER, GUEST
from tests.chaos.soak.state import Soak

NOT_SERVED = """
exists (
    select
    from pgembed.workers
    join pgembed.pipelines on pipelines.name = 'reports'
    where workers.role = any (%s)
        and workers.heartbeat_at > %s
        and workers.unserved ->> pipelines.id::text like %s
)
"""

COMMITTED = """
exists (
    select
    from pgembed.batches
    join pgembed.workers on workers.id = batches.worker_id
    where workers.role = any (%s) and batches.committed_at > %s
)
"""

# Whoever looks at them and takes what is hidden from him for deleted will be found out.
LOOK_AT_UNTOUCHED = """
select pgembed.enqueue('reports', array(select n::text from generate_series(1, %s) as n))
"""


def administer(run: Soak) -> None:
    """Take away one right after the other, see who is hit and who is not, and give it back."""
    chance = run.plan.chance("rights")
    while not run.over.wait(chance.uniform(1.0, 5.0)):
        chance.choice([_hide_rows, _revoke_select])(run)


def _hide_rows(run: Soak) -> None:
    """Switch row security on for the source; nobody is exempt from it but the superuser."""
    subject = [EMBEDDER, GUEST]
    exempt = _roles_of(run) - set(subject)
    with _taken(
        run,
        "alter table public.reports enable row level security",
        "alter table public.reports disable row level security",
    ):
        since = _now(run)
        _wait_for(run, NOT_SERVED, subject, since, "%row-level security%")
        if exempt:
            _wait_for(run, COMMITTED, list(exempt), since)
        check_always(run)
    run.happened["row security switched on and off"] += 1
    _wait_for(run, COMMITTED, subject, _now(run))


def _revoke_select(run: Soak) -> None:
    """Revoke one role's right to read the source; the others go on."""
    with _taken(
        run,
        f"revoke select (id, body) on public.reports from {GUEST}",
        f"grant select (id, body) on public.reports to {GUEST}",
    ):
        since = _now(run)
        _wait_for(run, NOT_SERVED, [GUEST], since, "%permission denied for table reports%")
        _wait_for(run, COMMITTED, list(_roles_of(run) - {GUEST}), since)
        check_always(run)
    run.happened["right to read revoked and granted"] += 1
    _wait_for(run, COMMITTED, [GUEST], _now(run))


@contextmanager
def _taken(run: Soak, take: str, give_back: str) -> Iterator[None]:
    run.execute(take)
    try:
        run.execute(LOOK_AT_UNTOUCHED, [UNTOUCHED_RECORDS])
        yield
    finally:
        run.execute(give_back)


def _wait_for(run: Soak, condition: str, roles: Sequence[str], *values: Any) -> None:
    run.wait_for(condition, [roles, *values], f"{condition} {roles} {values}")


def _roles_of(run: Soak) -> set[str]:
    ((superuser,),) = run.execute("select current_user")
    return {role or superuser for role in run.plan.roles}


def _now(run: Soak) -> Any:
    ((now,),) = run.execute("select clock_timestamp()")
    return now
