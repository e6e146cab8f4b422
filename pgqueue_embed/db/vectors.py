"""Vectors and numbers on their way into PostgreSQL: one cast for a claim, no Python for a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgqueue_embed.db.extension import vector_extension
from pgqueue_embed.db.packed import PackedArray, PackedArrayDumper, header
from pgqueue_embed.db.session import Connection

# Element types of pgvector's binary formats, big-endian (pgvector src/vector.c vector_send and
# src/halfvec.c halfvec_send: int16 dimensions, int16 unused, then the elements).
ELEMENT: dict[str, np.dtype[Any]] = {"vector": np.dtype(">f4"), "halfvec": np.dtype(">f2")}

# How far from 1 a unit vector's length may be: the rounding of halfvec included.
LENGTH_TOLERANCE = 1e-3


def vector_text(vector: NDArray[np.float32]) -> str:
    """Return a vector, shape (dimensions,), as pgvector reads it.

    Of a float32, nine digits are all of it.
    """
    return "[" + ",".join(["%.9g"] * len(vector)) % tuple(vector.tolist()) + "]"


def pack(vectors: NDArray[np.float32], *, vector_type: str, element_oid: int) -> bytes:
    """Return `vectors`, shape (rows, dimensions), as one binary array of `vector_type`.

    See `packed` for the format.
    """
    rows, dimensions = vectors.shape
    element = ELEMENT[vector_type]
    layout = np.dtype(
        [("bytes", ">i4"), ("dim", ">i2"), ("unused", ">i2"), ("values", element, (dimensions,))]
    )
    packed = np.zeros(rows, dtype=layout)
    packed["bytes"] = 4 + dimensions * element.itemsize
    packed["dim"] = dimensions
    packed["values"] = vectors
    return header(rows, element_oid) + packed.tobytes()


def unpack(payloads: Sequence[bytes], *, vector_type: str, dimensions: int) -> NDArray[np.float32]:
    """Return vectors that the server sent in binary, shape (rows, dimensions).

    Behind the four bytes of the header, as in `pack`. One of other dimensions comes back as NaN.
    """
    element = ELEMENT[vector_type]
    vectors = np.full((len(payloads), dimensions), np.nan, np.float32)
    for row, payload in enumerate(payloads):
        values = np.frombuffer(payload, element, offset=4)
        if len(values) == dimensions:
            vectors[row] = values
    return vectors


class VectorCodec:
    """What one database calls its vector types; the extension may live in any schema.

    Made per connection, which it teaches to send packed vectors.
    """

    def __init__(self, connection: Connection) -> None:
        """Look the types up; raises SetupError when the vector extension is absent."""
        extension = vector_extension(connection)
        self.schema, self.version = extension.schema, extension.version
        rows = connection.execute(
            """
            select typname, pg_type.oid, typarray
            from pg_type
            join pg_namespace on pg_namespace.oid = typnamespace
            where nspname = %s and typname in ('vector', 'halfvec')
            """,
            (self.schema,),
        ).fetchall()
        connection.adapters.register_dumper(PackedArray, PackedArrayDumper)
        self._oids = {name: (oid, array_oid) for name, oid, array_oid in rows}

    def supports(self, vector_type: str) -> bool:
        """Return whether this pgvector knows `vector_type` (halfvec came with 0.7)."""
        return vector_type in self._oids

    def type_name(self, connection: Connection, vector_type: str, dimensions: int) -> str:
        """Return what this session calls the type of a column, such as ``public.vector(384)``."""
        oid, _ = self._oids[vector_type]
        name = connection.value("select format_type(%s::oid, %s)", (oid, dimensions))
        return str(name)

    def pack(self, vectors: NDArray[np.float32], vector_type: str) -> PackedArray:
        """Return `vectors`, shape (rows, dimensions), ready to be a statement's parameter."""
        oid, array_oid = self._oids[vector_type]
        return PackedArray(pack(vectors, vector_type=vector_type, element_oid=oid), array_oid)
