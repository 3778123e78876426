# SPDX-License-Identifier: Apache-2.0
"""Read a file once, into memory that nobody else has, hash those bytes, and see the tensors in them.

A mapping of the file would be cheaper, but whoever may write to the file could change it between the hash and the use.
So the bytes are copied once, hashed in a second thread while the next piece is read, and the tensors of a safetensors
file are views of that one copy: the peak is the length of the file.
"""

from __future__ import annotations

import hashlib
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from art_medical.errors import IntegrityError, ModelError
from art_medical.zoo.plain_file import open_plain_file
from art_medical.zoo.tensor_header import HashedFile, read_header

PIECE = 4 << 20


def read_hashed(path: Path, size: int) -> tuple[memoryview, str]:
    """Bytes of a plain file and their sha256; a link is not followed.

    :param size: Length of the file in bytes, which the caller has found acceptable.
    :raises IntegrityError: If it is shorter or longer than that.
    :raises OSError: If it cannot be read.
    """
    view, digest, done = np.empty(size, np.uint8).data, hashlib.sha256(), 0  # not filled, unlike a bytearray
    with open_plain_file(path) as stream, ThreadPoolExecutor(1) as pool:
        while read := stream.readinto(view[done : done + PIECE]):  # type: ignore[attr-defined]  # every file has it
            pool.submit(digest.update, view[done : done + read])
            done += read
        if done != size or stream.read(1):
            raise IntegrityError(f"{path} changed its length while it was read; expected {size} bytes")
    return view, digest.hexdigest()


def tensors_in(data: bytes | memoryview) -> dict[str, Tensor]:
    """Tensors of a safetensors file, as views of its bytes where these can be written, else of a copy.

    :param data: The whole file.
    :raises ModelError: If it is none.
    """
    if sys.byteorder != "little":
        raise ModelError("safetensors files are little-endian, this machine is not")
    end = 8 + int.from_bytes(data[:8], "little")
    entries = read_header(HashedFile("", len(data), bytes(data[: min(end, len(data))])), "header")
    whole = torch.frombuffer(bytearray(data) if isinstance(data, bytes) else data, dtype=torch.uint8)
    found, position = {}, end
    for name, entry in entries.items():
        dtype = getattr(torch, entry.dtype)
        length = math.prod(entry.shape) * dtype.itemsize
        piece = whole[position : position + length]
        if position % dtype.itemsize:  # the format allows it, a view does not
            piece = piece.clone()
        found[name] = piece.view(dtype).reshape(entry.shape) if length else torch.empty(entry.shape, dtype=dtype)
        position += length
    return found
