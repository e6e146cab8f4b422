"""Arrays on their way into PostgreSQL in its binary format: one parameter, no text for a number.

The format is that of array_send (PostgreSQL src/backend/utils/adt/arrayfuncs.c): number of array
dimensions, null flag, element type, length, lower bound, then each element with its byte length
before it. An empty array has zero dimensions.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg.abc import DumperKey
from psycopg.adapt import Dumper, PyFormat
from psycopg.pq import Format

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# PostgreSQL's own types have the same numbers in every database (src/include/catalog/pg_type.dat).
INTEGER_OID, INTEGER_ARRAY_OID = 23, 1007
REAL_OID, REAL_ARRAY_OID = 700, 1021
NUMBER_BYTES = 4
HEADER_BYTES = 20


@dataclass(frozen=True)
class PackedArray:
    """Values in PostgreSQL's binary array format, a parameter of type `array_oid`."""

    payload: bytes
    array_oid: int


class PackedArrayDumper(Dumper):
    """Sends PackedArray as they are, declared with their own array type."""

    format = Format.BINARY

    def get_key(self, obj: PackedArray, format: PyFormat) -> DumperKey:  # noqa: A002 (psycopg's name)
        return (self.cls, obj.array_oid)  # type: ignore[return-value]

    def upgrade(self, obj: PackedArray, format: PyFormat) -> PackedArrayDumper:  # noqa: A002
        dumper = PackedArrayDumper(self.cls)
        dumper.oid = obj.array_oid
        return dumper

    def dump(self, obj: PackedArray) -> bytes:
        return obj.payload


def header(length: int, element_oid: int) -> bytes:
    """Return what stands before the elements."""
    shape = (length, 1) if length else ()
    return struct.pack(f">{3 + len(shape)}i", len(shape) // 2, 0, element_oid, *shape)


def pack_integers(values: Sequence[int]) -> PackedArray:
    """Return `values`, ready to be a parameter of type ``integer[]``."""
    elements = [NUMBER_BYTES] * (2 * len(values))
    elements[1::2] = values
    payload = struct.pack(f">{len(elements)}i", *elements)
    return PackedArray(header(len(values), INTEGER_OID) + payload, INTEGER_ARRAY_OID)


def pack_reals(values: NDArray[np.float32]) -> PackedArray:
    """Return numbers, shape (n,), ready to be a parameter of type ``real[]``."""
    import numpy as np  # commands that look at nothing but the catalogue need none

    packed = np.empty(len(values), [("bytes", ">i4"), ("value", ">f4")])
    packed["bytes"] = NUMBER_BYTES
    packed["value"] = values
    return PackedArray(header(len(values), REAL_OID) + packed.tobytes(), REAL_ARRAY_OID)


def join_reals(arrays: Sequence[PackedArray]) -> PackedArray:
    """Return what `pack_reals` makes of all their numbers, one array after the other."""
    elements = b"".join(each.payload[HEADER_BYTES:] for each in arrays)
    length = len(elements) // (2 * NUMBER_BYTES)
    return PackedArray(header(length, REAL_OID) + elements, REAL_ARRAY_OID)
