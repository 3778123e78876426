# SPDX-License-Identifier: Apache-2.0
"""State dicts of ``torch.save``: read when they are plain, refused by name when they are anything else, never run."""

from __future__ import annotations

import collections
import io
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from art_medical.errors import ModelError, UnsafeBundleError
from art_medical.zoo import state_dict
from art_medical.zoo.state_dict import MOST_PICKLE, MOST_TENSORS, Interpreter, read_state_dict
from art_medical.zoo.weights import load_weights, parse_weights

NETWORK = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 1))


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def repacked(data: bytes, change: Callable[[str, bytes], bytes | None], **options: Any) -> bytes:
    """The archive with each record changed, or left out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w", **options) as target:
        for name in source.namelist():
            record = change(name.partition("/")[2], source.read(name))
            if record is not None:
                target.writestr(name, record)
    return buffer.getvalue()


def pickled(content: bytes) -> bytes:
    """The plain archive with another pickle in it."""
    return repacked(PLAIN, lambda name, record: content if name == "data.pkl" else record)


def refusal(data: bytes, wrapper: str = "") -> str:
    with pytest.raises(UnsafeBundleError) as caught:
        read_state_dict(data, "model.pt", wrapper)
    message = str(caught.value)
    assert message.startswith("model.pt: ")
    assert "\n" not in message
    assert len(message) < 700
    return message


VECTOR = collections.OrderedDict(w=torch.arange(4.0))
PLAIN = saved(VECTOR)
PICKLE = zipfile.ZipFile(io.BytesIO(PLAIN)).read("archive/data.pkl")


# -- what is read ------------------------------------------------------------------------------------------------------


def test_a_state_dict_is_read_bit_for_bit() -> None:
    built = NETWORK.state_dict()
    found = read_state_dict(saved(built), "model.pt")
    assert list(found) == list(built)
    assert all(torch.equal(found[key], built[key]) and found[key].dtype == built[key].dtype for key in built)
    assert found["1.num_batches_tracked"].dtype == torch.int64
    assert type(found) is dict


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1)])
def test_odd_shapes(shape: tuple[int, ...]) -> None:
    assert torch.equal(read_state_dict(saved({"w": torch.ones(shape)}), "model.pt")["w"], torch.ones(shape))


def test_views_of_one_buffer_and_other_memory_formats_are_read() -> None:
    buffer = torch.arange(24.0)
    picture = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    content = {"a": buffer[:10], "b": buffer[10:].reshape(2, 7).T, "picture": picture, "half": torch.rand(3).half()}
    found = read_state_dict(saved(content), "model.pt")
    assert all(torch.equal(found[key], content[key]) for key in content)


def test_the_one_level_that_the_card_names() -> None:
    wrapped = {"state_dict": NETWORK.state_dict(), "epoch": 7, "loss": 0.5, "name": "best", "done": True, "next": None}
    assert list(read_state_dict(saved(wrapped), "model.pt", "state_dict")) == list(NETWORK.state_dict())
    assert "its entry 'state_dict' is a mapping, not a tensor; name it as wrapper on the card" in refusal(
        saved(wrapped)
    )
    assert "has no entry 'model', which the card names as wrapper" in refusal(saved(wrapped), "model")
    assert "its entry 'epoch' holds a int, not a mapping" in refusal(saved(wrapped), "epoch")
    deeper = {"a": {"state_dict": NETWORK.state_dict()}}
    assert "its entry 'state_dict' is a mapping, not a tensor" in refusal(saved(deeper), "a")


# -- code --------------------------------------------------------------------------------------------------------------


class Canary:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "executed"))


def test_a_pickle_does_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    assert "data.pkl imports '__builtin__.getattr'; a state dict imports only" in refusal(saved({"w": Canary(canary)}))
    assert "is a bare pickle, the format of torch before 1.6" in refusal(pickle.dumps(Canary(canary)))
    legacy = saved({"w": Canary(canary)}, _use_new_zipfile_serialization=False)
    assert "is a bare pickle, the format of torch before 1.6" in refusal(legacy)
    assert not canary.exists()
    torch.load(io.BytesIO(saved({"w": Canary(canary)})), weights_only=False)
    assert canary.read_text() == "executed"  # the canary is alive


@pytest.mark.parametrize(
    "name",
    [
        b"os system",
        b"builtins eval",
        b"torch.jit._script load",
        b"torch load",
        b"numpy load",
        b"torch._utils _rebuild_qtensor",
        b"torch._utils _rebuild_sparse_tensor",
        b"torch._utils _rebuild_parameter",
        b"torch._utils _rebuild_from_type_v2",
        b"torch._utils _rebuild_meta_tensor_no_storage",
        b"torch._utils _rebuild_device_tensor_from_cpu_tensor",
        b"torch QInt8Storage",
        b"torch DoubleStorage",
        b"torch UntypedStorage",
        b"torch.nn.modules.linear Linear",
        b"collections Counter",
    ],
)  # fmt: skip
def test_only_four_kinds_of_names_are_imported(name: bytes) -> None:
    """weights_only would take some of these."""
    module, attribute = name.split()
    content = b"\x80\x02c" + module + b"\n" + attribute + b"\n."
    dotted = name.decode().replace(" ", ".")
    assert f"data.pkl imports {dotted!r}; a state dict imports only collections.OrderedDict, torch._utils." in refusal(
        pickled(content)
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02ccollections\nOrderedDict\n)R}X\x01\0\0\0aK\x01sb.", "sets attributes of an object"),
        (b"\x80\x02}(X\x01\0\0\0aK\x01ub.", "no sound pickle"),
        (b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.", "calls something else than a constructor"),
        (b"\x80\x02X\x02\0\0\0os)R.", "calls something else than a constructor"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls something else than a constructor"),
        (b"\x80\x02}K\x01K\x01s.", "has a key of type int; names of tensors are strings"),
        (b"\x80\x02}))s.", "has a key of type tuple; names of tensors are strings"),
        (b"\x80\x02}(X\x01\0\0\0aK\x01X\x01\0\0\0aK\x02u.", "gives the key 'a' twice"),
        (b"\x80\x02)X\x01\0\0\0aK\x01s.", "sets items of something that is no mapping"),
        (b"\x80\x02]K\x01a.", "uses the pickle instruction EMPTY_LIST, which no state dict needs"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "uses the pickle instruction SHORT_BINUNICODE"),
        (b"\x80\x02(cos\nsystem\nX\x01\0\0\0ao.", "data.pkl imports 'os.system'"),
        (b"(S'true'\nios\nsystem\n.", "uses the pickle instruction STRING"),
        (b"\x80\x02\x82\x01.", "uses the pickle instruction EXT1"),
        (b"\x80\x02P0\n.", "uses the pickle instruction PERSID"),
        (b"\x80\x02" + b"2" * 9 + b".", "uses the pickle instruction DUP"),
        (b"\x80\x02K\x01.", "holds a int, not a mapping of names to tensors"),
        (b"\x80\x02}.", "holds no tensor at all"),
        (b"\x80\x02}K\x01.", "no sound pickle: ValueError"),
        (b"\x80\x02h\x05.", "no sound pickle: KeyError"),
        (b"\x80\x02}", "no sound pickle: ValueError: pickle exhausted before seeing STOP"),
        (b"\x80\x02K\x01Q.", "no sound pickle: TypeError"),
        (b"", "no sound pickle: ValueError"),
        (b"}" * (MOST_PICKLE + 1), f"data.pkl has {MOST_PICKLE + 1} bytes, more than {MOST_PICKLE}"),
    ],
)
def test_instructions_that_no_state_dict_needs(content: bytes, message: str) -> None:
    assert message in refusal(pickled(content))


def test_a_tower_of_tuples_costs_nothing() -> None:
    """Each level holds the one below twice: printing or hashing the whole would never end."""
    tower = b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(200))
    assert "has a key of type tuple" in refusal(pickled(b"\x80\x02}" + tower + b"K\x01s."))
    storage = PICKLE[PICKLE.index(b"ctorch._utils") : PICKLE.index(b"Q") + 1]
    rebuilt = b"\x80\x02}X\x01\0\0\0a" + storage + tower + b"K\x01\x85K\x01\x85\x89}tRs."
    assert "has a tuple where a length or a position belongs" in refusal(pickled(rebuilt))


# -- memory ------------------------------------------------------------------------------------------------------------

FOUR, MANY = b"K\x04", b"J\xff\xff\xff\x7f"


def described(count: bytes = FOUR, offset: bytes = b"K\x00", size: bytes = FOUR, stride: bytes = b"K\x01") -> bytes:
    """The pickle of one vector of four numbers, with other numbers in it."""
    assert PICKLE.count(b"K\x04tq\x08QK\x00K\x04\x85q\x09K\x01\x85") == 1
    return PICKLE.replace(
        b"K\x04tq\x08QK\x00K\x04\x85q\x09K\x01\x85",
        count + b"tq\x08Q" + offset + size + b"\x85q\x09" + stride + b"\x85",
    )


@contextmanager
def little_memory(limit: int = 64 << 20) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("pickle_", "message"),
    [
        (described(count=MANY), "tensor 'w' claims a storage of 8589934588 bytes, the archive has 16"),
        (described(count=b"K\x03"), "tensor 'w' claims a storage of 12 bytes, the archive has 16"),
        (described(size=MANY, stride=b"K\x00"), "tensor 'w' of 2147483647 numbers shows some of them more than once"),
        (described(size=b"K\x02", stride=b"K\x00"), "tensor 'w' of 2 numbers shows some of them more than once"),
        (described(size=b"K\x05"), "tensor 'w' reaches beyond its storage of 4 numbers"),
        (described(offset=b"K\x01"), "tensor 'w' reaches beyond its storage of 4 numbers"),
        (described(stride=b"K\x02"), "tensor 'w' reaches beyond its storage of 4 numbers"),
        (described(offset=b"J\xff\xff\xff\xff"), "data.pkl has -1 where a length or a position belongs"),
        (described(size=b"\x88"), "data.pkl has a bool where a length or a position belongs"),
        (described(count=b"\x8a\x09" + b"\x7f" * 9), " where a length or a position belongs"),
        (PICKLE.replace(b"K\x04\x85q\x09K\x01\x85", b"(" + b"K\x01" * 9 + b"tq\x09h\x09"), "no tuple of at most 8"),
        (PICKLE.replace(b"K\x04\x85q\x09K\x01\x85", b"K\x04\x85q\x09)"), "tensor 'w' has 1 lengths and 0 strides"),
        (PICKLE.replace(b"X\x01\0\0\0" + b"0", b"X\x01\0\0\0" + b"1"), "the archive has none"),
        (PICKLE.replace(b"X\x01\0\0\0" + b"0", b"X\x03\0\0\0" + b"../"), "names a storage by something else"),
        (PICKLE.replace(b"storage", b"garbage"), "refers to something that is no storage of plain numbers"),
        (PICKLE.replace(b"FloatStorage", b"HalfStorage"), "claims a storage of 8 bytes, the archive has 16"),
    ],
)  # fmt: skip
def test_tensors_must_lie_in_bytes_that_are_there(pickle_: bytes, message: str) -> None:
    assert pickle_ != PICKLE
    with little_memory():
        assert message in refusal(pickled(pickle_))


def test_tensors_may_not_share_memory() -> None:
    """A thousand names of one large tensor would become a thousand tensors when they are loaded."""
    vector = torch.rand(1 << 20)
    data = saved({f"w{i}": vector for i in range(1000)})
    with little_memory():
        assert "the tensors claim 4194304000 bytes, the file holds 4194304: they share memory" in refusal(data)
    assert f"data.pkl builds more than {MOST_TENSORS} tensors" in refusal(
        saved({f"w{i}": vector[i : i + 1] for i in range(MOST_TENSORS + 1)})
    )


def test_tensors_beside_the_wrapper_are_bounded_too() -> None:
    vector = torch.rand(1 << 10)
    data = saved({"state_dict": {"w": torch.ones(1)}, "rest": {f"w{i}": vector[:] for i in range(9)}})
    assert "they share memory" in refusal(data, "state_dict")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2, dtype=torch.float64), "imports 'torch.DoubleStorage'"),
        (torch.ones(2, dtype=torch.complex64), "imports 'torch.ComplexFloatStorage'"),
        (torch.ones(2, dtype=torch.bool), "imports 'torch.BoolStorage'"),
        (torch.ones(2).to(torch.float8_e5m2), "imports 'torch._utils._rebuild_tensor_v3'"),
        (torch.ones(2, device="meta"), "imports 'torch._utils._rebuild_meta_tensor_no_storage'"),
        (torch.eye(3).to_sparse(), "imports 'torch._utils._rebuild_sparse_tensor'"),
        (torch.nn.Parameter(torch.ones(2)), "imports 'torch._utils._rebuild_parameter'"),
        (torch.ones(2).expand(3, 2), "shows some of them more than once"),
        (nn.Linear(1, 1), "imports 'torch.nn.modules.linear.Linear'"),
        ([torch.ones(1)], "EMPTY_LIST"),
        (1.5, "its entry 'w' is a float, not a tensor"),
    ],
)
def test_only_plain_tensors_of_three_types(tensor: Any, message: str) -> None:
    assert message in refusal(saved({"w": tensor}))


# -- the archive -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_other_formats() -> None:
    script = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 1), torch.ones(1, 2)), script)
    assert "is a TorchScript program; ask its publisher for the state dict" in refusal(script.getvalue())
    tar = b"storages".ljust(257, b"\0") + b"ustar\0" + bytes(700)
    assert "is a tar archive, the format of torch before 0.4" in refusal(tar)
    for data in (b"", b"\x08\x07\x12\x07pytorch", b"\x7fELF", b"PK\x05\x06" + bytes(18)):  # ONNX has no magic number
        assert "is no archive; weights must be a state dict in the zip format of torch.save" in refusal(data)


def test_a_bomb_is_not_inflated() -> None:
    """torch inflates compressed records without a limit."""
    bomb = repacked(saved({"w": torch.zeros(1 << 22)}), lambda _, record: record, compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    with little_memory(4 << 20):
        assert "record 'data.pkl' is compressed or encrypted; torch writes plain ones" in refusal(bomb)
    assert torch.load(io.BytesIO(bomb), weights_only=True)["w"].numel() == 1 << 22


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("archive/../../evil", "the archive holds 'archive/../../evil', which is no record of a state dict"),
        ("archive/data/../evil", "the archive holds 'archive/data/../evil', which is no record"),
        ("archive/data/x", "the archive holds 'archive/data/x', which is no record of a state dict"),
        ("archive/run.py", "the archive holds 'archive/run.py', which is no record of a state dict"),
        ("/etc/passwd", "the archive has 2 top folders, torch writes one"),
        ("other/data.pkl", "the archive has 2 top folders, torch writes one"),
        ("archive/constants.pkl", "is a TorchScript program"),
        ("archive/code/net.py", "is a TorchScript program"),
        ("archive/data.pkl", "the archive holds a record twice"),
        ("archive/data/0", "the archive holds a record twice"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_records_that_no_state_dict_has(name: str, message: str) -> None:
    buffer = io.BytesIO(PLAIN)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(name, b"evil")
    assert message in refusal(buffer.getvalue())


def test_damaged_archives() -> None:
    flipped = bytearray(PLAIN)
    flipped[PLAIN.index(torch.arange(4.0).numpy().tobytes())] ^= 1
    assert "is no sound zip archive: Bad CRC-32" in refusal(bytes(flipped))
    assert "is no sound zip archive" in refusal(PLAIN[:-30])
    assert "the archive has more than" in refusal(PLAIN + b"PK\x01\x02" * 5000)
    assert "the archive has no data.pkl" in refusal(repacked(PLAIN, lambda n, r: None if n == "data.pkl" else r))
    big = repacked(PLAIN, lambda name, record: b"big" if name == "byteorder" else record)
    assert "the weights are not little-endian" in refusal(big)


def test_torch_reads_only_what_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes before, between and behind the records are not handed on, and torch must return what was described."""
    seen = []
    load = torch.load

    def spy(file: io.BytesIO, **options: Any) -> Any:
        seen.append(zipfile.ZipFile(file).namelist())
        assert options == {"map_location": "cpu", "weights_only": True}
        file.seek(0)
        return load(file, **options)

    monkeypatch.setattr(torch, "load", spy)
    read_state_dict(PLAIN, "model.pt")
    assert seen == [["archive/version", "archive/byteorder", "archive/data.pkl", "archive/data/0"]]
    for other in (
        {"w": torch.ones(3)},
        {"v": torch.ones(4)},
        {"w": torch.ones(4).long()},
        {"w": nn.Parameter(torch.ones(4))},
    ):
        monkeypatch.setattr(torch, "load", lambda *_, other=other, **__: other)
        assert "torch reads other tensors than the pickle describes" in refusal(PLAIN)


@given(position=st.integers(0, len(PICKLE) - 1), byte=st.integers(0, 255))
def test_any_changed_byte_of_the_pickle_is_read_or_refused(position: int, byte: int) -> None:
    changed = bytearray(PICKLE)
    changed[position] = byte
    try:
        found = read_state_dict(pickled(bytes(changed)), "model.pt")
    except UnsafeBundleError:
        return
    assert all(t.numel() <= 4 and t.dtype in (torch.float32, torch.int64) for t in found.values())


@given(st.binary(max_size=60))
def test_any_pickle_is_described_or_refused(content: bytes) -> None:
    try:
        Interpreter(b"\x80\x02" + content + b".").run()
    except state_dict._Refused as refused:
        assert str(refused)


# -- into the network --------------------------------------------------------------------------------------------------


def fitted(tensors: dict[str, torch.Tensor], prefix: str = "") -> nn.Module:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 1))
    load_weights(network, parse_weights(saved(tensors), "model.pt", format="state_dict"), "model.pt", prefix)
    return network


def test_the_prefix_that_the_card_states_is_taken_off() -> None:
    own = NETWORK.state_dict()
    found = fitted({f"module.{key}": tensor for key, tensor in own.items()}, "module.").state_dict()
    assert all(torch.equal(found[key], own[key]) for key in own)
    with pytest.raises(ModelError, match=r"Missing key\(s\) in state_dict"):
        fitted({f"module.{key}": tensor for key, tensor in own.items()})
    with pytest.raises(ModelError, match=r"tensor '0\.weight' has not the prefix 'module\.' that the card states"):
        fitted(dict(own), "module.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"1.num_batches_tracked": None}, 'Missing key(s) in state_dict: "1.num_batches_tracked"'),
        ({"0.bias": None}, 'Missing key(s) in state_dict: "0.bias"'),
        ({"2.extra": torch.ones(1)}, 'Unexpected key(s) in state_dict: "2.extra"'),
        ({"0.weight": torch.ones(2, 1, 3, 2)}, "size mismatch for 0.weight"),
        ({"0.bias": torch.tensor([0.0, torch.nan])}, "tensor '0.bias' holds NaN or infinity"),
        ({"0.bias": torch.ones(2, dtype=torch.int64)}, "'0.bias' has type torch.int64, the network has torch.float32"),
        ({"1.num_batches_tracked": torch.tensor(1.0)}, "has type torch.float32, the network has torch.int64"),
    ],
)
def test_tensors_that_do_not_fit(change: dict[str, torch.Tensor | None], message: str) -> None:
    tensors = {key: tensor for key, tensor in {**NETWORK.state_dict(), **change}.items() if tensor is not None}
    with pytest.raises(ModelError) as caught:
        fitted(tensors)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
