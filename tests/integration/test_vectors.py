"""Vectors arrive in PostgreSQL bit by bit as they were packed."""

from __future__ import annotations

import numpy as np
import psycopg
import pytest

from pgqueue_embed.db.packed import PackedArray, PackedArrayDumper, pack_integers
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.db.vectors import ELEMENT, VectorCodec, pack, vector_text
from pgqueue_embed.errors import SetupError
from tests.support.corpus import make_source
from tests.support.pipelines import make_pipeline
from tests.support.rows import one_value

pytestmark = pytest.mark.on_both_servers


def received(connection: Connection, vectors: np.ndarray, vector_type: str) -> list[np.ndarray]:
    packed = VectorCodec(connection).pack(vectors, vector_type)
    query = "select vector::text from unnest(%s) with ordinality as v (vector, n) order by n"
    rows = connection.execute(query, (packed,)).fetchall()
    return [np.array(text.strip("[]").split(","), dtype=np.float64) for (text,) in rows]


@pytest.mark.parametrize("vector_type", ["vector", "halfvec"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (257, 384), (2, 2000)])
def test_vectors_survive_the_way(
    connection: Connection, vector_type: str, shape: tuple[int, int]
) -> None:
    vectors = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    expected = vectors.astype(ELEMENT[vector_type].newbyteorder("="))
    arrived = received(connection, vectors, vector_type)
    assert len(arrived) == shape[0]
    for row, vector in zip(expected, arrived, strict=True):
        assert np.array_equal(row, vector.astype(row.dtype))


def test_a_vector_as_text_is_the_same_to_the_last_bit(connection: Connection) -> None:
    length, direction = np.random.default_rng(7).standard_normal((2, 2000)).astype(np.float32)
    vector = direction * np.float32(10) ** np.round(8 * length)
    query = "select (%s::public.vector)::real[]"
    arrived = one_value(connection, query, (vector_text(vector),))
    assert np.array_equal(np.array(arrived, np.float32), vector)


@pytest.mark.parametrize("dimensions", [384, 768])
def test_a_vector_stays_in_the_row_of_its_chunk(connection: Connection, dimensions: int) -> None:
    make_pipeline(connection, make_source(connection), dimensions=dimensions)
    connection.execute(
        "insert into public.reports_chunks (fulltext_id, chunk_id, chunk_index, text_chunk,"
        " start_char, end_char, tokens, embedding)"
        " select 1, n, n, (select string_agg(md5(random()::text), '')"
        " from generate_series(n, n + 15)),"
        " 0, 1, 1, array_fill(random(), array[%s]) from generate_series(1, 50) as n",
        (dimensions,),
    )
    elsewhere = one_value(
        connection,
        "select pg_relation_size(reltoastrelid) from pg_class"
        " where oid = 'public.reports_chunks'::regclass",
    )
    assert elsewhere == 0


def test_no_vectors_are_an_empty_array(connection: Connection) -> None:
    assert received(connection, np.empty((0, 8), np.float32), "vector") == []


@pytest.mark.parametrize("values", [[], [0], [-(2**31), -1, 0, 1, 2**31 - 1] * 100])
def test_integers_survive_the_way(connection: Connection, values: list[int]) -> None:
    connection.adapters.register_dumper(PackedArray, PackedArrayDumper)
    packed = pack_integers(values)
    row = connection.execute("select %(v)b, pg_typeof(%(v)b)::text", {"v": packed}).fetchone()
    assert row == (values, "integer[]")


def test_rows_of_a_strided_view_are_packed_in_order(connection: Connection) -> None:
    wide = np.arange(60, dtype=np.float32).reshape(6, 10)
    arrived = received(connection, wide[::2, ::-1], "vector")
    assert np.array_equal(arrived, wide[::2, ::-1])


def test_packing_is_the_format_that_the_server_sends(connection: Connection) -> None:
    oid = one_value(connection, "select 'public.vector'::regtype::oid::int")
    sent = connection.execute("select array['[1,-2.5]'::vector, '[0,3e-5]']", binary=True)
    payload = sent.pgresult.get_value(0, 0)  # type: ignore[union-attr]
    vectors = np.array([[1, -2.5], [0, 3e-5]], dtype=np.float32)
    assert pack(vectors, vector_type="vector", element_oid=oid) == payload


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("vector_type", ["vector", "halfvec"])
def test_what_is_no_number_is_refused_by_the_server(
    connection: Connection, vector_type: str, bad: float
) -> None:
    vectors = np.array([[1, 0], [bad, 0]], dtype=np.float32)
    with pytest.raises(psycopg.DataError):
        received(connection, vectors, vector_type)


def test_codec_finds_the_extension_in_any_schema(empty_conninfo: str) -> None:
    with connect(empty_conninfo) as session:
        session.execute('create schema "Ext 1"; create extension vector schema "Ext 1"')
        codec = VectorCodec(session)
        assert codec.schema == "Ext 1"
        assert codec.supports("halfvec")
        assert not codec.supports("sparse")
        packed = codec.pack(np.eye(3, dtype=np.float32), "vector")
        kind = session.execute("select pg_typeof(%s)::text", (packed,)).fetchone()
        assert kind == ('"Ext 1".vector[]',)


def test_absent_extension_is_refused_with_the_way_out(empty_conninfo: str) -> None:
    with (
        connect(empty_conninfo) as session,
        pytest.raises(SetupError, match="run: pgembed migrate"),
    ):
        VectorCodec(session)
