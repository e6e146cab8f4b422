"""The rehearsal of `make rehearse`, with few records."""

from __future__ import annotations

import pytest

from benchmarks import rehearse
from benchmarks.rehearsal_stages import rehearsal


def test_every_stage_is_gone_through_and_no_record_is_lost(conninfo: str) -> None:
    found = rehearsal(conninfo, 600, 30, 2, "hash:3")
    with found.connection:
        told = {name: stage() for name, stage in found.stages().items()}
    assert told["enqueue"] == "600 queued"
    assert told["change a part"] == "30 records"
    assert told["change a few"] == "1 records"
    assert told["alter: a next generation"] == "600 queued"
    assert told["check"] == "each record has its chunk"


def test_a_stage_that_loses_a_record_ends_it(conninfo: str) -> None:
    found = rehearsal(conninfo, 20, 2)
    with found.connection:
        for name in ("fill the source", "create", "enqueue", "embed all"):
            found.stages()[name]()
        found.connection.execute("delete from public.reports_vectors where fulltext_id = 7")
        with pytest.raises(AssertionError, match="1 records are without their chunk"):
            found.check()
        found.connection.execute("delete from public.reports where id = 7")
        with pytest.raises(AssertionError, match="19 of 20 records are settled"):
            found.check()


def test_a_disk_that_is_too_small_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["rehearse", "--records", str(10**12)])
    with pytest.raises(SystemExit) as ended:
        rehearse.main()
    assert ended.value.code == 1
    assert "that does not fit" in capsys.readouterr().out
