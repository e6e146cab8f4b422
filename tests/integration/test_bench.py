"""`pgembed bench`: what it measures, what it tells of the machine, and what it leaves behind."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from pgqueue_embed.bench import run, throw_away
from pgqueue_embed.bench.forward import REFUSED_BY_A_TEXT, measure_forward
from pgqueue_embed.bench.run import Measured, Worked, with_best
from pgqueue_embed.bench.texts import documents
from pgqueue_embed.cli.bench import report
from pgqueue_embed.embedding import Memory, fingerprint, learnt
from pgqueue_embed.embedding.chooser import learnt_key
from pgqueue_embed.embedding.learnt import Learnt
from pgqueue_embed.embedding.precision import AUTO, candidates
from pgqueue_embed.local_server import LocalServer
from tests.conftest import DEFAULT_VERSION
from tests.support.commands import pgembed
from tests.support.models import make_tiny_model

LEFT = "pgembed_bench_1_00ff"


@pytest.fixture(scope="module")
def place(servers: Callable[[int], LocalServer]) -> LocalServer:
    return servers(DEFAULT_VERSION)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("home-of-jane") / "tiny")


@pytest.fixture(scope="module")
def measured(place: LocalServer, model: Path) -> Iterator[Measured]:
    """A whole measurement, of a worker with one claim at a time, whose server was left untidy."""
    with pytest.MonkeyPatch.context() as patch, session(place) as administrator:
        administrator.execute(f"create database {LEFT}")
        patch.setattr(run, "CONCURRENCIES", (1,))
        yield run.measure(place.conninfo(), model=str(model), seconds=0.4)


def session(place: LocalServer) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(place.conninfo(), autocommit=True)


def databases(place: LocalServer) -> list[object]:
    with session(place) as administrator:
        rows = administrator.execute(throw_away.OURS).fetchall()
    return [name for (name,) in rows]


def test_the_forward_pass_and_a_worker_are_measured_and_nothing_is_left(
    measured: Measured, place: LocalServer
) -> None:
    (worked,) = measured.workers
    (taken,) = [each for each in measured.forward.tried if each.is_taken]
    exact = measured.forward.tried[0]
    # On a processor that multiplies bf16, fp32 may be too slow to be timed.
    assert exact.cosine == 1.0 or "of the fastest by the probe" in exact.reason
    assert taken.cosine is not None
    assert taken.cosine >= 0.999
    assert all(each.chunks_per_second or each.reason for each in measured.forward.tried)
    assert [each.is_best for each in measured.forward.sizes].count(True) == 1
    assert worked.chunks >= worked.records >= run.FEWEST_RECORDS
    assert worked.is_best
    assert 0 < worked.busy_share <= 1
    assert worked.forward_share == pytest.approx(
        worked.chunks_per_second / measured.forward.chunks_per_second
    )
    assert databases(place) == []


def test_a_variant_that_a_text_has_refused_is_not_taken_and_told_of(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learnt, "_cache_folder", lambda: tmp_path)
    fp32, *others = map(str, candidates("cpu", AUTO))
    key = learnt_key("cpu", AUTO, fingerprint(model).digest)
    Memory().keep(key, Learnt(variant=fp32, refused=others))
    found = measure_forward(str(model), "cpu", 0.1)
    timed = [each for each in found.tried if each.chunks_per_second]
    assert [each.name for each in timed if each.is_taken] == [fp32]
    assert {each.reason for each in timed if not each.is_taken} <= {REFUSED_BY_A_TEXT}


def test_what_a_killed_one_has_left_is_dropped_by_the_next(
    measured: Measured, place: LocalServer
) -> None:
    assert measured
    assert LEFT not in databases(place)


def test_a_report_names_the_machine_and_nobody(measured: Measured) -> None:
    text = "\n".join(report(measured))
    for fact in (measured.machine.processor, "pgvector", "torch", "| fp32 ", "busy", " tiny,"):
        assert fact in text
    for private in ("home-of-jane", platform.node(), "password"):
        assert private not in text
    assert "better measure without them" not in "\n".join(report(with_load(measured, 0.0)))
    assert "better measure without them" in "\n".join(report(with_load(measured, 999.0)))


def with_load(measured: Measured, load: float) -> Measured:
    return replace(measured, machine=replace(measured.machine, load=load))


def test_the_same_as_json(
    measured: Measured, conninfo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "measure", lambda *_, **__: measured)
    ran = pgembed(conninfo, "bench", "--json")
    assert json.loads(ran.stdout)["workers"][0]["chunks"] == measured.workers[0].chunks
    assert json.loads(ran.stdout)["forward"]["model"] == "tiny"
    assert "home-of-jane" not in ran.stdout


def test_fewest_claims_that_are_as_good_as_any_are_best() -> None:
    rates = {1: 80.0, 2: 99.0, 4: 100.0}
    worked = [
        Worked(
            concurrency=each,
            records=1,
            chunks=1,
            seconds=1.0,
            chunks_per_second=rate,
            forward_share=1.0,
            busy_share=1.0,
        )
        for each, rate in rates.items()
    ]
    assert [each.concurrency for each in with_best(worked) if each.is_best] == [2]


def test_interrupted_it_leaves_nothing_behind(place: LocalServer, model: Path) -> None:
    """Ctrl-C reaches the command while the process that measures is at work."""

    def interrupt(doing: str) -> None:
        assert len(databases(place)) == 1
        if doing.startswith("opening"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.measure(place.conninfo(), model=str(model), seconds=2.0, tell=interrupt)
    assert databases(place) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--seconds", "1"), "--seconds 1: give 5 to 3,600"),
        (("--model", "./nothing", "--seconds", "5"), "./nothing"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(
    place: LocalServer, arguments: tuple[str, ...], reason: str
) -> None:
    ran = pgembed(place.conninfo(), "bench", *arguments)
    assert ran.error is not None
    assert reason in ran.error
    assert "\n" not in ran.error
    assert databases(place) == []


def test_a_role_that_may_make_no_database_hears_of_the_private_server(place: LocalServer) -> None:
    with session(place) as administrator:
        administrator.execute("create role bench_guest login password 'guest'")
        try:
            dsn = psycopg.conninfo.make_conninfo(
                place.conninfo(), user="bench_guest", password="guest"
            )
            ran = pgembed(dsn, "bench")
        finally:
            administrator.execute("drop role bench_guest")
    assert ran.error is not None
    assert "may not create a database" in ran.error
    assert "pgembed db url" in ran.error


def test_texts_are_the_same_each_time_and_none_occurs_twice() -> None:
    again, first = documents(), documents()
    some = [next(first) for _ in range(50)]
    assert some == [next(again) for _ in range(50)]
    assert len(set(some)) == len(some)
