# SPDX-License-Identifier: Apache-2.0
"""Archives around pickles, numbers in them that nobody can mean, and formats that are renamed."""

from __future__ import annotations

import io
import lzma
import marshal
import struct
import tarfile
import zipfile

import torch

from art_medical.errors import ModelError, UnsafeBundleError
from tests.zoo.hostile.pickles import bare, called
from tests.zoo.hostile.stage import Stage, Victim, attack, honest_pickle, rewritten, state_dict, with_pickle


@attack(
    "tar archive of early torch, which was read without weights_only",
    "CVE-2025-32434; pytorch/pytorch pull request 145020",
    UnsafeBundleError,
    "is a tar archive, the format of torch before 0.4",
)
def _(stage: Stage) -> Victim:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            content = called("posix", "system", stage.shell)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stage.loads_state_dict(buffer.getvalue())


@attack(
    "archive that is packed by 7-Zip, past scanners",
    "nullifAI, ReversingLabs 2025",
    UnsafeBundleError,
    "is a 7z archive; weights must be a state dict in the zip format",
)
def _(stage: Stage) -> Victim:
    packed = lzma.compress(with_pickle(bare(stage)), format=lzma.FORMAT_ALONE)
    return stage.loads_state_dict(b"7z\xbc\xaf\x27\x1c\0\x04" + packed)


@attack(
    "TorchScript program under the name of a state dict",
    "CVE-2022-45907 (code in TorchScript annotations)",
    UnsafeBundleError,
    "is a TorchScript program; ask its publisher",
)
def _(stage: Stage) -> Victim:
    code = b"def forward(self, x: Tensor) -> Tensor:\n  return x\n"
    return stage.loads_state_dict(rewritten({"constants.pkl": b"\x80\x02).", "code/__torch__/net.py": code}))


@attack(
    "Keras archive with a lambda layer under the name of a state dict",
    "CVE-2024-3660",
    UnsafeBundleError,
    "the archive holds 'archive/config.json', which is no record of a state dict",
)
def _(stage: Stage) -> Victim:
    body = marshal.dumps(compile(stage.python, "<lambda>", "eval"))
    config = b'{"class_name": "Lambda", "config": {"function": "' + body.hex().encode() + b'"}}'
    return stage.loads_state_dict(rewritten({"config.json": config}))


@attack(
    "HDF5 file of Keras with a lambda layer under the name of a state dict",
    "CVE-2024-3660",
    UnsafeBundleError,
    "is an HDF5 file, the format of Keras; weights must be a state dict",
)
def _(stage: Stage) -> Victim:
    return stage.loads_state_dict(b"\x89HDF\r\n\x1a\n" + marshal.dumps(compile(stage.python, "<lambda>", "eval")))


@attack(
    "two pickles of one name in the archive, one for the scanner and one for the victim",
    "CWE-436 (readers differ)",
    UnsafeBundleError,
    "the archive holds a record twice",
)
def _(stage: Stage) -> Victim:
    buffer = io.BytesIO(state_dict())
    with zipfile.ZipFile(buffer, "a") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        entry = zipfile.ZipInfo(name)
        entry.compress_type = zipfile.ZIP_STORED
        archive.NameToInfo.pop(name)  # else a warning
        archive.writestr(entry, called("posix", "system", stage.shell))
    return stage.loads_state_dict(buffer.getvalue())


@attack(
    "pickle with another name in the directory of the archive than before its content",
    "CVE-2025-1944",
    UnsafeBundleError,
    "is no sound zip archive: File name in directory",
)
def _(stage: Stage) -> Victim:
    data = bytearray(with_pickle(called("posix", "system", stage.shell)))
    data[data.index(b"data.pkl")] = ord("x")
    return stage.loads_state_dict(bytes(data))


@attack(
    "archive with a bad checksum, which stops scanners only",
    "CVE-2025-10156",
    UnsafeBundleError,
    "is no sound zip archive: Bad CRC-32",
)
def _(stage: Stage) -> Victim:
    content = called("posix", "system", stage.shell)
    data = bytearray(with_pickle(content))
    data[bytes(data).index(stage.shell.encode())] ^= 0x20
    return stage.loads_state_dict(bytes(data))


@attack(
    "archive whose records are flagged as encrypted, which stops scanners only",
    "CVE-2025-1945",
    UnsafeBundleError,
    "record 'data.pkl' is compressed or encrypted",
)
def _(stage: Stage) -> Victim:
    data = bytearray(with_pickle(called("posix", "system", stage.shell)))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + at] |= 1
    return stage.loads_state_dict(bytes(data))


@attack(
    "archive with a name that leaves the folder",
    "CVE-2025-58755 (MONAI, GHSA-x6ww-pf9m-m73m); Zip Slip, Snyk 2018",
    UnsafeBundleError,
    "the archive holds 'archive/../../outside/evil.py', which is no record",
)
def _(stage: Stage) -> Victim:
    return stage.loads_state_dict(rewritten({"../../outside/evil.py": stage.python.encode()}))


@attack(
    "archive that inflates to a thousand times its size",
    "CWE-409; Fifield, A better zip bomb, WOOT 2019",
    UnsafeBundleError,
    "record 'data/0' is compressed or encrypted",
)
def _(stage: Stage) -> Victim:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", honest_pickle())
        archive.writestr("archive/data/0", bytes(1 << 24), zipfile.ZIP_DEFLATED)
    return stage.loads_state_dict(buffer.getvalue())


@attack(
    "archive whose records overlap",
    "Fifield, A better zip bomb, WOOT 2019",
    UnsafeBundleError,
    "the records overlap: together they claim more than",
)
def _(stage: Stage) -> Victim:
    """A hundred directory entries that all show the one record."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", honest_pickle())
        archive.writestr("archive/data/0", bytes(20_000))
        (entry,) = [e for e in archive.filelist if e.filename.endswith("/0")]
        for n in range(1, 100):
            copy = zipfile.ZipInfo(f"archive/data/{n}")
            copy.header_offset, copy.CRC = entry.header_offset, entry.CRC
            copy.file_size, copy.compress_size = entry.file_size, entry.compress_size
            archive.filelist.append(copy)
    return stage.loads_state_dict(buffer.getvalue())


@attack(
    "archive whose directory has a million entries",
    "CWE-400",
    UnsafeBundleError,
    "the archive has more than 4112 records",
)
def _(stage: Stage) -> Victim:
    return stage.loads_state_dict(state_dict() + b"PK\x01\x02" * 1_000_000)


def _vector(
    count: bytes = b"K\x04", size: bytes = b"K\x04", stride: bytes = b"K\x01", offset: bytes = b"K\x00"
) -> bytes:
    """The pickle of one vector of four numbers, with other numbers in it."""
    return (
        b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"
        b"X\x01\0\0\x000X\x03\0\0\0cpu" + count + b"tQ" + offset + size + b"\x85" + stride + b"\x85\x89}tRs."
    )


TERABYTE = b"\x8a\x06" + (1 << 38).to_bytes(6, "little")


def _one_vector(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", bytes(16))
    return buffer.getvalue()


@attack(
    "storage that claims a terabyte",
    "CVE-2026-24747 (storage larger than the file); CWE-789",
    UnsafeBundleError,
    "tensor 'w' claims a storage of 1099511627776 bytes, the archive has 16",
)
def _(stage: Stage) -> Victim:
    return stage.loads_state_dict(_one_vector(_vector(count=TERABYTE)))


@attack(
    "stride 0, which shows one number as a terabyte",
    "CWE-789; torch.as_strided",
    UnsafeBundleError,
    "tensor 'w' of 274877906944 numbers shows some of them more than once",
)
def _(stage: Stage) -> Victim:
    return stage.loads_state_dict(_one_vector(_vector(size=TERABYTE, stride=b"K\x00")))


@attack(
    "tensor that reaches beyond its storage",
    "CWE-125; torch.as_strided",
    UnsafeBundleError,
    "tensor 'w' reaches beyond its storage of 4 numbers",
)
def _(stage: Stage) -> Victim:
    return stage.loads_state_dict(_one_vector(_vector(stride=b"M\xff\xff")))


@attack(
    "tensor that begins before its storage",
    "CWE-127; torch.as_strided",
    UnsafeBundleError,
    "data.pkl has -16 where a length or a position belongs",
)
def _(stage: Stage) -> Victim:
    return stage.loads_state_dict(_one_vector(_vector(offset=b"J\xf0\xff\xff\xff")))


@attack(
    "storage by the name of a file",
    "CWE-22",
    UnsafeBundleError,
    "data.pkl names a storage by something else than a number",
)
def _(stage: Stage) -> Victim:
    name = str(stage.secret).encode()
    content = _vector().replace(b"X\x01\0\0\x000", b"X" + struct.pack("<I", len(name)) + name)
    return stage.loads_state_dict(_one_vector(content))


@attack(
    "tower of tuples, each of which holds the one below twice",
    "CWE-776, as a pickle: billion laughs",
    UnsafeBundleError,
    "data.pkl has a key of type tuple",
)
def _(stage: Stage) -> Victim:
    tower = b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(200))
    return stage.loads_state_dict(with_pickle(b"\x80\x02}" + tower + b"K\x01s."))


@attack(
    "state dict with a NaN in it",
    "CWE-20; a NaN makes every decision the first class",
    ModelError,
    "tensor 'readout.bias' holds NaN or infinity",
)
def _(stage: Stage) -> Victim:
    tensors = {"readout.weight": torch.ones(1, 4), "readout.bias": torch.tensor([torch.nan])}
    return stage.loads_state_dict(state_dict(tensors))


@attack(
    "state dict of another network, under names that fit nothing",
    "PyTorchModelHubMixin loads with strict=False (huggingface_hub)",
    ModelError,
    "the tensors do not fit the network: Error(s) in loading state_dict for LinearObserver: Missing key(s)",
)
def _(stage: Stage) -> Victim:
    return stage.loads_state_dict(state_dict({"backdoor": torch.ones(3)}))
