# SPDX-License-Identifier: Apache-2.0
"""Hash a file in one pass with flat memory, and read what a safetensors header declares without its tensors.

Format: 8 bytes with the length N of the header as a little-endian integer, N bytes of JSON (name to ``dtype``,
``shape`` and ``data_offsets``, besides ``__metadata__``), then the tensors, without gaps (safetensors 0.4,
"Format"). The limits are those of the safetensors library, or tighter.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from art_medical.errors import ModelError
from art_medical.zoo.plain_file import open_plain_file

MOST_HEADER_BYTES = 1 << 20
MOST_DIMENSIONS = 8
MOST_LENGTH = 1 << 48
CHUNK = 1 << 20
DTYPES = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "F32": ("float32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F64": ("float64", 8),
}
"""Types that a header may name: torch's name and bytes of one value."""


@dataclass(frozen=True)
class HashedFile:
    """What one pass over a file tells.

    :param head: Its first bytes, up to the end of a safetensors header if it has one.
    """

    sha256: str
    size: int
    head: bytes


@dataclass(frozen=True)
class TensorEntry:
    """Type by torch's name (``float16``, ``int64`` ...) and shape of one tensor."""

    dtype: str
    shape: tuple[int, ...]


def hash_file(path: Path) -> HashedFile:
    """Hash a plain file, a chunk at a time; a link is not followed.

    :raises OSError: If it cannot be read.
    """
    digest, size, head = hashlib.sha256(), 0, bytearray()
    with open_plain_file(path) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            if len(head) < _header_end(head or chunk):
                head += chunk
    return HashedFile(digest.hexdigest(), size, bytes(head[: _header_end(head)]))


def read_header(file: HashedFile, where: str) -> dict[str, TensorEntry]:
    """Tensors that a safetensors file declares, checked against its length.

    :raises ModelError: If it is no safetensors file, or a tensor is not where it should be.
    """
    end, said = _header_end(file.head), int.from_bytes(file.head[:8], "little")
    if len(file.head) < max(end, 9) or said != end - 8:
        raise ModelError(
            f"{where} is no safetensors file: it ends before its header does, or the header is too long ({said} bytes)"
        )
    try:
        declared = json.loads(file.head[8:end].decode("utf-8"), object_pairs_hook=_unique)
        spans = sorted(_span(name, entry) for name, entry in declared.items() if name != "__metadata__")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"{where} is no safetensors file: {' '.join(str(error).split())[:200]}") from error
    position = 0
    for start, stop, name, _ in spans:
        if start != position:
            raise ModelError(f"{where}: tensor {name[:100]!r} begins at {start}, the one before it ends at {position}")
        position = stop
    if position != file.size - end:
        raise ModelError(f"{where}: the tensors take {position} bytes, the file has {file.size - end} for them")
    return {name: entry for _, _, name, entry in spans}


def _header_end(head: bytes | bytearray) -> int:
    """Position behind the header, at most :data:`MOST_HEADER_BYTES` away."""
    return 8 + min(int.from_bytes(head[:8], "little"), MOST_HEADER_BYTES) if len(head) >= 8 else 0


def _span(name: str, entry: dict[str, Any]) -> tuple[int, int, str, TensorEntry]:
    code, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if code not in DTYPES:
        raise ValueError(f"tensor {name[:100]!r} has the unknown type {str(code)[:20]!r}")
    dtype, width = DTYPES[code]
    if any(type(n) is not int or n < 0 for n in (*shape, start, stop)):
        raise ValueError(f"tensor {name[:100]!r}: shape and offsets must be whole numbers from 0")
    if len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"tensor {name[:100]!r} has {len(shape)} dimensions, more than {MOST_DIMENSIONS}")
    if max(shape, default=0) >= MOST_LENGTH:  # also of a tensor without numbers
        raise ValueError(f"tensor {name[:100]!r} has a length of {max(shape)}, more than any file holds")
    if stop - start != math.prod(shape) * width:
        raise ValueError(f"tensor {name[:100]!r} of shape {shape} and type {code} takes {stop - start} bytes")
    return start, stop, name, TensorEntry(dtype, tuple(shape))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("the header gives a key twice")
    return result
