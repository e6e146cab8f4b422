"""`pgembed metrics`: what Prometheus reads agrees with the views, and stays what documents say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from psycopg.rows import dict_row

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection
from pgqueue_embed.monitoring.metrics import RECORDS
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.worker.registry import WorkerIdentity, register
from tests.support.commands import pgembed
from tests.support.corpus import texts
from tests.support.fakes import POISON
from tests.support.pipelines import queue_documents
from tests.support.working import drain

REPOSITORY = Path(__file__).parents[2]
OPERATIONS = REPOSITORY / "docs" / "operations.md"
ALERTS = REPOSITORY / "monitoring" / "prometheus-alerts.yaml"
DASHBOARD = REPOSITORY / "monitoring" / "grafana-dashboard.json"
METRIC = re.compile(r"pgembed_\w+")
ROW = re.compile(r"^\| `(pgembed_\w+)` \| (.*?) \| (.+) \|$", re.MULTILINE)


@pytest.fixture
def reports(connection: Connection, session: Session) -> Pipeline:
    """A pipeline with done, dead and waiting records, and one worker."""
    pipeline = queue_documents(connection, [*texts(5), POISON])
    drain(session, pipeline)
    identity = WorkerIdentity(
        device="cpu", precision="fp32", model="fake", concurrency=1, pipeline_ids=[pipeline.id]
    )
    register(connection, identity)
    connection.execute("select pgembed.enqueue('reports', '{1,2}')")
    return pipeline


def parsed(text: str) -> dict[str, Metric]:
    return {each.name: each for each in text_string_to_metric_families(text)}


def names(metrics: Iterable[Metric]) -> set[str]:
    return {f"{each.name}_total" if each.type == "counter" else each.name for each in metrics}


def test_metrics_have_the_values_of_the_views(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    found = parsed(pgembed(conninfo, "metrics").stdout)

    with connection.cursor(row_factory=dict_row) as cursor:
        (row,) = cursor.execute("select * from pgembed.progress").fetchall()
    assert row["dead"] == 1
    assert row["pending"] == 2
    for name, column, _ in RECORDS:
        samples = found[f"pgembed_{name}"].samples
        if row[column] is None:
            assert not samples
        else:
            ((_, labels, value, *_),) = samples
            assert (labels, value) == ({"pipeline": "reports"}, row[column])
    stages = {
        each.labels["stage"]: each.value for each in found["pgembed_recent_stage_seconds"].samples
    }
    assert set(stages) == {"read", "chunk", "embed", "write", "lock"}
    assert all(seconds >= 0 for seconds in stages.values())
    (up,) = found["pgembed_worker_up"].samples
    assert (up.labels["device"], up.labels["precision"], up.value) == ("cpu", "fp32", 1)


def test_restarts_lag_of_capture_and_stages_are_told_by_host(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    connection.execute(
        "update pgembed.work set priority = 1, created_at = clock_timestamp() - interval '1 hour'"
    )
    bulk = parsed(pgembed(conninfo, "metrics").stdout)
    assert [each.value for each in bulk["pgembed_capture_lag_seconds"].samples] == [0]
    connection.execute(
        "update pgembed.work set priority = 0 where id = (select min(id) from pgembed.work)"
    )
    host = connection.value("select host from pgembed.workers order by id desc limit 1")
    connection.execute(
        "update pgembed.workers set stopped_at = clock_timestamp(), stop_reason = 'crashed: killed'"
        " where id = (select max(id) from pgembed.workers)"
    )
    identity = WorkerIdentity(
        device="cpu", precision="fp32", model="fake", concurrency=1, pipeline_ids=[reports.id]
    )
    again = register(connection, identity)
    connection.execute(
        "update pgembed.batches set worker_id = %s, read_seconds = 3, lock_seconds = 1,"
        " committed_at = clock_timestamp()",
        (again,),
    )
    connection.execute(
        "insert into pgembed.event_log (happened_at, kind, host, pid)"
        " values (clock_timestamp() - interval '2 hours', 'restarted', %s, 1),"
        " (clock_timestamp(), 'lease lost', 'air-4', 911)",
        (host,),
    )

    found = parsed(pgembed(conninfo, "metrics").stdout)

    met = {
        (each.labels["host"], each.labels["event"]): each.value
        for each in found["pgembed_recent_worker_events"].samples
    }
    assert met[host, "restarted"] == met[host, "crashed"] == met["air-4", "lease_lost"] == 1
    assert met[host, "recovered"] == met["air-4", "restarted"] == 0
    (lag,) = found["pgembed_capture_lag_seconds"].samples
    assert 3600 <= lag.value < 4000
    commits = connection.value("select count(*) from pgembed.batches")
    stages = {
        (each.labels["host"], each.labels["stage"]): each.value
        for each in found["pgembed_worker_recent_stage_seconds"].samples
    }
    assert (stages[host, "read"], stages[host, "lock"]) == (3 * commits, commits)


def test_what_is_not_known_is_absent_and_a_silent_worker_is_down(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    connection.execute("update pgembed.workers set heartbeat_at = now() - interval '7 minutes'")
    connection.execute("delete from pgembed.batches; delete from pgembed.minutes")
    connection.execute("select * from pgembed.pause('reports')")

    found = parsed(pgembed(conninfo, "metrics", "reports").stdout)

    assert [each.value for each in found["pgembed_worker_up"].samples] == [0]
    assert [each.value for each in found["pgembed_paused"].samples] == [1]
    assert not found["pgembed_time_left_seconds"].samples
    assert not found["pgembed_last_commit_age_seconds"].samples


def test_documents_name_each_metric_with_its_labels(conninfo: str, reports: Pipeline) -> None:
    found = parsed(pgembed(conninfo, "metrics").stdout)
    page = OPERATIONS.read_text()
    documented = {name: (labels, what) for name, labels, what in ROW.findall(page)}

    assert set(documented) == names(found.values())
    for metric in found.values():
        (name,) = names([metric])
        labels, what = documented[name]
        assert what == metric.documentation, name
        for sample in metric.samples:
            assert set(re.findall(r"`(\w+)`", labels)) == set(sample.labels), name


# Of promtool's rules (prometheus/util/promlint): what names may not have as a word.
ABBREVIATED = {"s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "tb", "pb", "m", "h", "d"}
NOT_BASE = {
    "milliseconds",
    "minutes",
    "hours",
    "days",
    "kilobytes",
    "megabytes",
    "gigabytes",
    "percent",
}
TYPES = {"gauge", "counter", "summary", "histogram", "untyped"}
RESERVED = {"total", "sum", "count", "bucket", "info"}


def test_names_keep_the_rules_of_prometheus(conninfo: str, reports: Pipeline) -> None:
    text = pgembed(conninfo, "metrics").stdout
    for metric in parsed(text).values():
        (name,) = names([metric])
        words = name.split("_")
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
        assert metric.documentation.endswith(".")
        assert not (ABBREVIATED | NOT_BASE | TYPES) & set(words), name
        assert metric.type in ("gauge", "counter")
        assert (words[-1] == "total") == (metric.type == "counter"), name
        assert metric.type == "counter" or words[-1] not in RESERVED, name
        for sample in metric.samples:
            assert all(re.fullmatch(r"[a-z_]+", label) for label in sample.labels)
    assert text.count("# TYPE") == text.count("# HELP") == len(parsed(text))


def test_alerts_and_dashboard_read_metrics_that_there_are(conninfo: str, reports: Pipeline) -> None:
    known = names(parsed(pgembed(conninfo, "metrics").stdout).values())
    rules = [
        rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
    ]
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    shown = [target["expr"] for panel in panels for target in panel["targets"]]
    shown += [variable["query"] for variable in dashboard["templating"]["list"]]

    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in rules)
    assert len({rule["alert"] for rule in rules}) == len(rules)
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert_apart(panels)
    for expressions in ([rule["expr"] for rule in rules], shown):
        named = set(METRIC.findall(" ".join(expressions)))
        assert named
        assert named <= known


def assert_apart(panels: Sequence[Mapping[str, Any]]) -> None:
    """Fail if two panels lie on one another, or one beyond the 24 columns of a dashboard."""
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert max(x for x, _ in cells) < 24
    assert len(set(cells)) == len(cells)


def test_what_workers_and_evaluations_found_is_told(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    connection.execute("update pgembed.workers set canary_cosine = 0.99931")
    connection.execute(
        "create index on public.reports_chunks using hnsw (embedding public.vector_cosine_ops)"
    )
    connection.execute(
        "update pgembed.pipelines set ef_search = 120, ef_search_scan = 'none',"
        " ef_search_parameters = '{}', ef_search_k = 10, ef_search_recall = 0.985"
    )
    found = parsed(pgembed(conninfo, "metrics").stdout)
    assert [each.value for each in found["pgembed_worker_canary_cosine"].samples] == [0.99931]
    assert [each.value for each in found["pgembed_index_recall"].samples] == [0.985]

    connection.execute("""update pgembed.pipelines set ef_search_parameters = '{"m": "8"}'""")
    found = parsed(pgembed(conninfo, "metrics").stdout)
    assert not found["pgembed_index_recall"].samples, "it was measured of another index"


def test_file_is_replaced_as_a_whole_or_left_as_it_was(
    conninfo: str, reports: Pipeline, tmp_path: Path
) -> None:
    file = tmp_path / "pgembed.prom"

    assert pgembed(conninfo, "metrics", "--textfile", str(file)).stdout == ""

    assert "pgembed_pending_records" in parsed(file.read_text())
    assert list(tmp_path.iterdir()) == [file]
    failed = pgembed(conninfo, "metrics", "--textfile", str(tmp_path / "none" / "a.prom"))
    assert failed.exit_code == 2
    assert (failed.error or "").startswith("cannot write ")
    assert pgembed(conninfo, "metrics", "nothing").exit_code == 2
