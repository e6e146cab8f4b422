"""Names of tables and columns, and the settings of a worker."""

from __future__ import annotations

import json

import pytest

from pgqueue_embed.db.names import Table, check_identifier, parse_table
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.pipeline.spec_checks import checked
from pgqueue_embed.pipeline.target_columns import TargetColumns
from pgqueue_embed.worker.settings import WorkerSettings

SOURCE = Table(schema="public", name="reports")
TARGET = Table(schema="public", name="chunks")


def spec(**fields: object) -> PipelineSpec:
    usual = {"name": "p", "source": SOURCE, "target": TARGET, "text_fields": ("t",)}
    return checked(PipelineSpec(**{**usual, **fields}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "schema", "name"),
    [
        ("reports", "fda_data", "reports"),
        ("public.reports", "public", "reports"),
        ('"a.b"."c"', "a.b", "c"),
        ('public."with ""quotes"" and space"', "public", 'with "quotes" and space'),
        ('"Grüße"', "fda_data", "Grüße"),
        ("报告.事件", "报告", "事件"),
        ("Mixed.Case", "Mixed", "Case"),
        ('"semi;colon--"', "fda_data", "semi;colon--"),
    ],
)
def test_table_names_are_read_as_postgresql_writes_them(text: str, schema: str, name: str) -> None:
    assert parse_table(text, "fda_data") == Table(schema=schema, name=name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a.b.c",
        '""',
        '"a',
        'a"',
        'my"table',
        '"a"b"',
        "a\x00b",
        "é" * 32,
    ],
)
def test_text_that_names_no_table_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_table(text, "public")


def test_name_of_63_bytes_fits_and_one_of_64_does_not() -> None:
    check_identifier("ü" * 31 + "x")
    with pytest.raises(UsageError, match="63 bytes"):
        check_identifier("ü" * 32)


def test_name_with_a_percent_sign_is_refused() -> None:
    """psycopg would take it for a placeholder."""
    with pytest.raises(UsageError, match="holds a %"):
        check_identifier("% of total")


def test_two_target_columns_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two columns named 'tokens'"):
        TargetColumns(chunk_id="tokens")


def test_target_columns_are_renamed_by_their_meaning() -> None:
    columns = TargetColumns().renamed({"fulltext_id": "a, b", "embedding": "vec tor"})
    assert (columns.fulltext_id, columns.embedding, columns.id) == (("a", "b"), "vec tor", "id")
    with pytest.raises(UsageError, match="unknown target column 'vector'"):
        columns.renamed({"vector": "v"})


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "x" * 101},
        {"name": "two\nlines"},
        {"id_fields": ("",)},
        {"id_fields": ()},
        {"id_fields": ("a", "a")},
        {"text_fields": ()},
        {"text_fields": ("t",), "template": "$t"},
        {"where": " "},
        {"text_fields": ("x" * 64,)},
        {"chunk_tokens": 0},
        {"overlap_tokens": -1},
        {"chunk_tokens": 128, "overlap_tokens": 64},
        {"chunk_tokens": 1, "overlap_tokens": 1},
        {"vector_type": "sparsevec"},
        {"max_attempts": 0},
        {"target": SOURCE},
    ],
)
def test_pipeline_that_cannot_work_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        spec(**wrong)


@pytest.mark.parametrize(("chunk", "overlap"), [(1, 0), (128, 63), (129, 64), (3, 1)])
def test_overlap_may_be_just_below_half_a_chunk(chunk: int, overlap: int) -> None:
    assert spec(chunk_tokens=chunk, overlap_tokens=overlap).overlap_tokens == overlap


@pytest.mark.parametrize(
    "wrong",
    [
        {"concurrency": 0},
        {"concurrency": 65},
        {"lease_seconds": 0.5},
        {"max_records": 0},
        {"retry_delay_seconds": -1.0},
        {"retry_delay_seconds": float("nan")},
    ],
)
def test_worker_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        WorkerSettings(**wrong)  # type: ignore[arg-type]


def test_worker_settings_survive_json() -> None:
    settings = WorkerSettings(
        concurrency=3, pipelines=("a", "b"), drain=True, model_path="m", unserved=((3, "no right"),)
    )
    assert WorkerSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"device": "gpu"}, "unknown device 'gpu': give auto, mps, cuda, cuda:N or cpu"),
        ({"device": "cuda:x"}, "unknown device 'cuda:x'"),
        ({"precision": "fp8"}, "unknown precision 'fp8': give one of auto, fp32"),
        ({"cache_megabytes": -1}, "--cache-size -1: give at least 0 megabytes"),
        ({"memory_limit_megabytes": 0}, "--memory-limit 0: give at least 1 megabyte$"),
    ],
)
def test_worker_that_cannot_be_is_refused_before_it_starts(
    settings: dict[str, object], says: str
) -> None:
    with pytest.raises(UsageError, match=f"^{says}"):
        WorkerSettings(**settings)  # type: ignore[arg-type]
