"""The IDX format of MNIST and its relatives: bytes to arrays."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def gunzipped(content: bytes, source: str) -> bytes:
    """Return the bytes, unzipped if they are zipped; a broken file is named by `source`."""
    try:
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{source}: broken gzip file ({error}); replace it") from error


def parse_idx(raw: bytes, source: str) -> npt.NDArray[Any]:
    """Return the array of an IDX file, in native byte order and writable."""
    # The IDX header: 0, 0, what the values are, the rank, and the sizes as big-endian uint32.
    start = 4 + 4 * raw[3] if len(raw) >= 4 else 4
    if raw[:2] != b"\0\0" or len(raw) < start or raw[2] not in _DTYPES:
        raise ValueError(f"{source}: expected an IDX file, got one that starts with {raw[:4]!r}")
    sizes, dtype = struct.unpack_from(f">{raw[3]}I", raw, 4), np.dtype(_DTYPES[raw[2]])
    if len(raw) - start != (wanted := math.prod(sizes) * dtype.itemsize):
        raise ValueError(
            f"{source}: expected {wanted} bytes of values for the shape {sizes} that its header "
            f"states, got {len(raw) - start}; replace it"
        )
    values = np.frombuffer(raw, dtype, offset=start).reshape(sizes)
    return values.astype(dtype.newbyteorder("="))
