# SPDX-License-Identifier: Apache-2.0
"""Open what somebody else put there: a regular file inside its folder, or nothing, without waiting for it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from art_medical.errors import ModelError


def open_plain_file(path: Path) -> BinaryIO:
    """Open a regular file for reading; a link is not followed, and the other end of a pipe is not waited for.

    :raises OSError: If it cannot be opened, or is a link, a folder, a pipe or a device.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    number = os.open(path, flags)
    try:
        mode = os.fstat(number).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "Is no regular file", str(path))
        return open(number, "rb")
    except BaseException:
        os.close(number)
        raise


def read_plain_file(path: Path, most: int) -> bytes:
    """Content of a regular file of at most ``most`` bytes; no more than that is ever held.

    :raises OSError: If it cannot be read, or is a link, a folder, a pipe or a device.
    :raises ModelError: If it is longer.
    """
    with open_plain_file(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ModelError(f"{path} has more than {most:,} bytes")
    return data


def below(folder: Path, name: str) -> Path:
    """Path of a file in a folder; the folders in between must be real ones.

    :param name: Relative, with ``/`` between its parts and without ``..``; the file itself need not exist.
    :raises ModelError: If one of them is a symbolic link, which may lead anywhere.
    """
    for parent in PurePosixPath(name).parents:
        if parent.name and (folder / parent).is_symlink():
            raise ModelError(f"{folder / parent} is a symbolic link; the folders of a model must be real ones")
    return folder / name
