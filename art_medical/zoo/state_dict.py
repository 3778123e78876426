# SPDX-License-Identifier: Apache-2.0
"""State dicts that ``torch.save`` wrote: what the file says is worked out, and bounded, before torch may read it.

``weights_only`` guards against code, not against a file that asks for memory: torch inflates compressed records, a
pickle may name a storage many times, and a stride of 0 shows one number as a terabyte. So the archive is opened here,
its pickle is followed by an interpreter that knows the few instructions of a state dict and builds nothing but
descriptions, each tensor must lie inside bytes that are really there, and torch gets an archive that was written anew
from the parts that were checked. What torch then returns must be what was described.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import struct
import zipfile
from dataclasses import dataclass, field
from typing import Any

import torch

from art_medical.errors import UnsafeBundleError

MOST_TENSORS = 4096
MOST_ENTRIES = MOST_TENSORS + 16  # records of an archive: one for each tensor and a few of torch's own
MOST_PICKLE = 4 << 20  # bytes; the pickle of a large classifier has some 100 kB
MOST_DIMENSIONS = 8

_GLOBALS = ("collections OrderedDict", "torch._utils _rebuild_tensor_v2")
_STORAGES = {
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch LongStorage": torch.int64,
}
_OWN = {"data.pkl", "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"}
_RECORD = re.compile(r"data/[0-9]{1,9}")


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str
    count: int


@dataclass(frozen=True)
class TensorPlan:
    """What the pickle says of one tensor."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.size)


class _Refused(Exception):
    """A rule that the file breaks; becomes an error that names the file."""


def read_state_dict(data: bytes, where: str, wrapper: str = "") -> dict[str, torch.Tensor]:
    """Tensors of a state dict in torch's zip format.

    :param data: The file, hashed before.
    :param where: Names the file in errors.
    :param wrapper: Entry of the saved mapping that holds the tensors; empty if the mapping holds them itself.
    :raises UnsafeBundleError: If it is anything but a flat mapping of names to plain tensors that the file holds.
    """
    try:
        records = _records(data)
        interpreter = Interpreter(records["data.pkl"])
        plan = _unwrapped(interpreter.run(), wrapper)
        chosen = {id(tensor) for tensor in plan.values()}
        others = [("outside the mapping", tensor) for tensor in interpreter.tensors if id(tensor) not in chosen]
        sizes = {name[5:]: len(record) for name, record in records.items() if name.startswith("data/")}
        _check_tensors([*plan.items(), *others], sizes)
        archive = _rewritten(records)
    except _Refused as refusal:
        raise UnsafeBundleError(f"{where}: {refusal}") from refusal
    try:
        loaded = torch.load(archive, map_location="cpu", weights_only=True)
    except Exception as error:  # torch promises no type
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UnsafeBundleError(f"{where}: torch cannot read it as weights: {reason}") from error
    tensors = loaded[wrapper] if wrapper else loaded
    found = {key: (type(t), t.dtype, t.layout, tuple(t.shape), tuple(t.stride())) for key, t in tensors.items()}
    if found != {key: (torch.Tensor, p.storage.dtype, torch.strided, p.size, p.stride) for key, p in plan.items()}:
        raise UnsafeBundleError(f"{where}: torch reads other tensors than the pickle describes")
    return dict(tensors)


# -- the archive -------------------------------------------------------------------------------------------------------


def _records(data: bytes) -> dict[str, bytes]:
    """Records of the archive by their name below its one folder; none is compressed, repeated or unexpected."""
    if not data.startswith(b"PK\x03\x04"):
        raise _Refused(f"is {_kind(data)}; weights must be a state dict in the zip format of torch.save")
    if data.count(b"PK\x01\x02") > MOST_ENTRIES:  # before the directory is read into memory
        raise _Refused(f"the archive has more than {MOST_ENTRIES} records")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            names = _check_entries(entries, len(data))
            return {name: archive.read(entry) for name, entry in zip(names, entries, strict=True)}
    except (zipfile.BadZipFile, struct.error, ArithmeticError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise _Refused(f"is no sound zip archive: {str(error)[:200]}") from error


def _kind(data: bytes) -> str:
    if data[:6] == b"7z\xbc\xaf\x27\x1c":
        return "a 7z archive"
    if data[:8] == b"\x89HDF\r\n\x1a\n":
        return "an HDF5 file, the format of Keras"
    if data[257:262] == b"ustar":
        return "a tar archive, the format of torch before 0.4"
    if data[:1] == b"\x80":
        return "a bare pickle, the format of torch before 1.6"
    return "no archive"


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> list[str]:
    folders = {entry.filename.partition("/")[0] for entry in entries}
    if len(folders) != 1:
        raise _Refused(f"the archive has {len(folders)} top folders, torch writes one")
    names = [entry.filename.partition("/")[2] for entry in entries]
    if any(name == "constants.pkl" or name.startswith("code/") for name in names):
        raise _Refused("is a TorchScript program; ask its publisher for the state dict")
    for entry, name in zip(entries, names, strict=True):
        if name not in _OWN and not _RECORD.fullmatch(name):
            raise _Refused(f"the archive holds {entry.filename[:200]!r}, which is no record of a state dict")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
            raise _Refused(f"record {name!r} is compressed or encrypted; torch writes plain ones")
    if len(set(names)) != len(names):
        raise _Refused("the archive holds a record twice")
    if sum(entry.file_size for entry in entries) > size:
        raise _Refused(f"the records overlap: together they claim more than the {size} bytes of the file")
    if "data.pkl" not in names:
        raise _Refused("the archive has no data.pkl")
    return names


def _rewritten(records: dict[str, bytes]) -> io.BytesIO:
    """An archive of the checked records alone: no two readers can see different things in it."""
    if records.get("byteorder", b"little") != b"little":
        raise _Refused("the weights are not little-endian")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")
        for name, record in records.items():
            if name == "data.pkl" or name.startswith("data/"):
                archive.writestr(f"archive/{name}", record)
    buffer.seek(0)
    return buffer


# -- the pickle --------------------------------------------------------------------------------------------------------


@dataclass
class Interpreter:
    """Follows the pickle of a state dict and describes what it would build; nothing is imported or called.

    Knows the instructions that ``torch.save`` writes for a state dict and no others. Keys of mappings are strings, so
    nothing is hashed that could take long.
    """

    pickle: bytes
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    tensors: list[TensorPlan] = field(default_factory=list)

    def run(self) -> Any:
        """The object that the pickle describes: mappings, numbers, strings and :class:`TensorPlan`."""
        if len(self.pickle) > MOST_PICKLE:
            raise _Refused(f"data.pkl has {len(self.pickle)} bytes, more than {MOST_PICKLE}")
        try:
            for opcode, argument, _ in pickletools.genops(self.pickle):
                if opcode.name == "STOP":
                    (result,) = self.stack
                    return result
                self._step(opcode.name, argument)
        except _Refused:
            raise
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise _Refused(f"data.pkl is no sound pickle: {type(error).__name__}: {str(error)[:200]}") from error
        raise _Refused("data.pkl has no end")

    def _step(self, name: str, argument: Any) -> None:
        if name in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"):
            self.stack.append(argument)
        elif name in ("NEWTRUE", "NEWFALSE", "NONE"):
            self.stack.append({"NEWTRUE": True, "NEWFALSE": False, "NONE": None}[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in _INSTRUCTIONS:
            _INSTRUCTIONS[name](self)
        elif name == "GLOBAL":
            self.stack.append(self._global(argument))
        elif name != "PROTO":
            raise _Refused(f"data.pkl uses the pickle instruction {name}, which no state dict needs")

    def _global(self, name: str) -> _Global:
        if name not in _GLOBALS and name not in _STORAGES:
            known = ", ".join([*_GLOBALS, *_STORAGES]).replace(" ", ".").replace(",.", ", ")
            raise _Refused(f"data.pkl imports {name.replace(' ', '.')[:200]!r}; a state dict imports only {known}")
        return _Global(name)

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def empty_dict(self) -> None:
        self.stack.append({})

    def empty_tuple(self) -> None:
        self.stack.append(())

    def tuple_since_mark(self) -> None:
        self.stack.append(tuple(self._since_mark()))

    def tuple1(self) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def tuple2(self) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def tuple3(self) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key, value])

    def set_items(self) -> None:
        self._put(self._since_mark())

    def _put(self, pairs: list[Any]) -> None:
        mapping = self.stack[-1]
        if not isinstance(mapping, dict):
            raise _Refused("data.pkl sets items of something that is no mapping")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str):
                raise _Refused(f"data.pkl has a key of type {type(key).__name__}; names of tensors are strings")
            if key in mapping:
                raise _Refused(f"data.pkl gives the key {key[:200]!r} twice")
            mapping[key] = value

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if function == _Global("collections OrderedDict") and arguments == ():
            self.stack.append({})
        elif function == _Global("torch._utils _rebuild_tensor_v2"):
            storage, offset, size, stride, _, hooks = arguments
            if hooks != {} or not isinstance(storage, _Storage):
                raise _Refused("data.pkl builds a tensor with hooks or without a storage")
            self.tensors.append(TensorPlan(storage, _whole(offset), _lengths(size), _lengths(stride)))
            self.stack.append(self.tensors[-1])
            if len(self.tensors) > MOST_TENSORS:
                raise _Refused(f"data.pkl builds more than {MOST_TENSORS} tensors")
        else:
            raise _Refused("data.pkl calls something else than a constructor of a mapping or a tensor")

    def build(self) -> None:
        """``OrderedDict`` with the versions of the modules as an attribute; nobody here reads them."""
        state = self.stack.pop()
        if not (isinstance(self.stack[-1], dict) and isinstance(state, dict) and set(state) == {"_metadata"}):
            raise _Refused("data.pkl sets attributes of an object")

    def persistent(self) -> None:
        word, kind, key, location, count = self.stack.pop()
        if (
            word != "storage"
            or not isinstance(location, str)
            or not isinstance(kind, _Global)
            or kind.name not in _STORAGES
        ):
            raise _Refused("data.pkl refers to something that is no storage of plain numbers")
        if not isinstance(key, str) or not _RECORD.fullmatch(f"data/{key}"):
            raise _Refused("data.pkl names a storage by something else than a number")
        self.stack.append(_Storage(_STORAGES[kind.name], key, _whole(count)))


_INSTRUCTIONS = {
    "MARK": Interpreter.mark,
    "EMPTY_DICT": Interpreter.empty_dict,
    "EMPTY_TUPLE": Interpreter.empty_tuple,
    "TUPLE": Interpreter.tuple_since_mark,
    "TUPLE1": Interpreter.tuple1,
    "TUPLE2": Interpreter.tuple2,
    "TUPLE3": Interpreter.tuple3,
    "SETITEM": Interpreter.set_item,
    "SETITEMS": Interpreter.set_items,
    "REDUCE": Interpreter.reduce,
    "BUILD": Interpreter.build,
    "BINPERSID": Interpreter.persistent,
}


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 40:
        found = (
            value if type(value) is int else f"a {type(value).__name__}"
        )  # a tuple of tuples may be endless to print
        raise _Refused(f"data.pkl has {found} where a length or a position belongs")
    return value


def _lengths(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > MOST_DIMENSIONS:
        raise _Refused(f"data.pkl has a tensor whose shape is no tuple of at most {MOST_DIMENSIONS} lengths")
    return tuple(_whole(length) for length in value)


# -- what the pickle describes -----------------------------------------------------------------------------------------


def _unwrapped(described: Any, wrapper: str) -> dict[str, TensorPlan]:
    """The mapping of tensors: the whole object, or the one entry that the card names."""
    if not isinstance(described, dict):
        raise _Refused(f"holds {_named(described)}, not a mapping of names to tensors")
    if wrapper:
        if wrapper not in described:
            raise _Refused(f"has no entry {wrapper!r}, which the card names as wrapper")
        described = described[wrapper]
        if not isinstance(described, dict):
            raise _Refused(f"its entry {wrapper!r} holds {_named(described)}, not a mapping of names to tensors")
    for key, value in described.items():
        if not isinstance(value, TensorPlan):
            hint = "; name it as wrapper on the card if the tensors are in there" if isinstance(value, dict) else ""
            raise _Refused(f"its entry {key[:200]!r} is {_named(value)}, not a tensor{hint}")
    if not described:
        raise _Refused("holds no tensor at all")
    return described


def _named(value: Any) -> str:
    return "a mapping" if isinstance(value, dict) else f"a {type(value).__name__}"


def _check_tensors(tensors: list[tuple[str, TensorPlan]], records: dict[str, int]) -> None:
    """Every tensor lies inside its record, shows no number twice, and all together need no more than the file holds."""
    claimed = 0
    for name, tensor in tensors:
        storage = tensor.storage
        if records.get(storage.key) != storage.count * storage.dtype.itemsize:
            raise _Refused(
                f"tensor {name[:200]!r} claims a storage of {storage.count * storage.dtype.itemsize} bytes, "
                f"the archive has {records.get(storage.key, 'none')}"
            )
        if len(tensor.size) != len(tensor.stride):
            raise _Refused(f"tensor {name[:200]!r} has {len(tensor.size)} lengths and {len(tensor.stride)} strides")
        last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True))
        if tensor.count and last >= storage.count:
            raise _Refused(f"tensor {name[:200]!r} reaches beyond its storage of {storage.count} numbers")
        if tensor.count > storage.count or any(
            n > 1 and step == 0 for n, step in zip(tensor.size, tensor.stride, strict=True)
        ):
            raise _Refused(f"tensor {name[:200]!r} of {tensor.count} numbers shows some of them more than once")
        claimed += tensor.count * storage.dtype.itemsize
    held = sum(records.values())
    if claimed > held:
        raise _Refused(f"the tensors claim {claimed} bytes, the file holds {held}: they share memory")
