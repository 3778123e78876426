# SPDX-License-Identifier: Apache-2.0
"""The result store: one JSON and one array file for each cell, written atomically; a cut run resumes."""

from __future__ import annotations

import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from art_medical.errors import ArtMedicalError

Arrays = dict[str, NDArray[Any]]


class Store:
    """Cells in a folder, by id.

    :param folder: Created when the first cell is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: str) -> tuple[dict[str, Any], Arrays] | None:
        """A finished cell, or ``None`` where there is none or it is damaged (it is then computed anew)."""
        try:
            record = json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
            data = io.BytesIO((self.folder / f"{key}.npz").read_bytes())
            with np.load(data, allow_pickle=False) as arrays:
                loaded = {name: arrays[name] for name in arrays.files}
        except Exception:  # whatever is wrong with a stored cell, computing it again mends it
            return None
        return (record, loaded) if isinstance(record, dict) and record.get("id") == key else None

    def write(self, key: str, record: dict[str, Any], arrays: Arrays) -> None:
        """Keep a finished cell; the JSON comes last, so that it stands for both."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # stubs take keywords for allow_pickle
        write_atomically(self.folder / f"{key}.npz", buffer.getvalue())
        write_atomically(self.folder / f"{key}.json", to_json(record).encode())


def to_json(content: Any) -> str:
    """Readable JSON; numbers are numbers and NaN is an error."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that is either whole or not there.

    :raises ArtMedicalError: If the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(part, 0o644)
            os.replace(part, path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ArtMedicalError(f"cannot write {path}: {error.strerror}") from error
