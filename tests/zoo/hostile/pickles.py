# SPDX-License-Identifier: Apache-2.0
"""Pickles that are programs in the place of a state dict."""

from __future__ import annotations

import io
import os
import pickle
import struct
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from art_medical.errors import UnsafeBundleError
from art_medical.zoo.verify import verify_model
from tests.zoo.hostile.stage import Stage, Victim, attack, honest_pickle, with_pickle


class Reduced:
    """Unpickling it calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def called(module: str, name: str, *arguments: str) -> bytes:
    """A pickle of protocol 2 that calls a function with strings, as it is written by hand."""
    texts = b"".join(b"X" + struct.pack("<I", len(a.encode())) + a.encode() for a in arguments)
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + texts + b"tR."


PICKLES: dict[str, Callable[[Stage], bytes]] = {}
"""Payloads that plain ``pickle`` runs: each has a positive control."""

GADGETS = [
    ("os.system", "Slaviero, Sour Pickles, Black Hat USA 2011", "posix", "system"),
    ("eval", "Sultanik, Never a dill moment, Trail of Bits 2021", "builtins", "eval"),
    ("runpy, as reverse shells do", "JFrog, malicious models on the Hub, 2024", "runpy", "_run_code"),
    ("pip as a downloader", "CVE-2025-1716", "pip", "main"),
    ("cProfile", "GHSA-9w88-8rmg-7g2p", "cProfile", "runctx"),
    ("timeit", "protectai/modelscan issue 272", "timeit", "timeit"),
    ("the subprocess transport of asyncio", "CVE-2025-10157", "asyncio.unix_events", "_UnixSubprocessTransport._start"),
    ("logging.FileHandler, which creates files", "CVE-2026-56304", "logging", "FileHandler"),
    ("ssl, which leaks by DNS", "CVE-2025-46417", "ssl", "get_server_certificate"),
    ("pkgutil, which finds everything by name", "GHSA-vvpj-8cmc-gx39", "pkgutil", "resolve_name"),
    ("operator, which reaches attributes", "GHSA-m273-6v24-x4m4", "operator", "attrgetter"),
    ("pickle once more", "GHSA-84r2-jw7c-4r5q", "_pickle", "loads"),
    ("the configuration module of torch", "GHSA-vv6j-3g6g-2pvj", "torch.utils._config_module", "load_config"),
    ("torch.hub, which downloads and imports", "warning in the documentation of torch.hub.load", "torch.hub", "load"),
    ("numpy.load", "CVE-2019-6446", "numpy", "load"),
    ("dill, which makes functions", "Sultanik, Never a dill moment, 2021", "dill._dill", "_create_function"),
    ("numpy.f2py, which evaluates", "trailofbits/fickling #210", "numpy.f2py.crackfortran", "getlincoef"),
]

LIVE: dict[str, Callable[[Stage], tuple[str, ...]]] = {
    "posix.system": lambda stage: (stage.shell,),
    "builtins.eval": lambda stage: (stage.python,),
    "timeit.timeit": lambda stage: ("pass", stage.python),
    "logging.FileHandler": lambda stage: (str(stage.canary),),
}
"""Arguments with which a gadget does its harm in one call, here and now."""


def _gadget(module: str, name: str) -> Callable[[Stage], bytes]:
    arguments = LIVE.get(f"{module}.{name}", lambda stage: (stage.python,))
    return lambda stage: called(module, name, *arguments(stage))


def _add_gadget(title: str, source: str, module: str, name: str) -> None:
    content = _gadget(module, name)
    if f"{module}.{name}" in LIVE:
        PICKLES[f"state dict that calls {title}"] = content

    @attack(
        f"state dict that calls {title}", source, UnsafeBundleError, f"data.pkl imports '{module}.{name}'; a state dict"
    )
    def _(stage: Stage) -> Victim:
        return stage.loads_state_dict(with_pickle(content(stage)))


for _row in GADGETS:
    _add_gadget(*_row)


def _stack_global(stage: Stage) -> bytes:
    """Protocol 4 takes the name from the stack, where it may be put together."""
    return pickle.dumps(Reduced(os.system, stage.shell), protocol=4)


def _broken(stage: Stage) -> bytes:
    """It has run before the stream breaks off."""
    return called("posix", "system", stage.shell)[:-1].replace(b"\x80\x02", b"\x80\x02K\x010", 1) + b"\xff"


PICKLES["state dict whose pickle takes names from the stack"] = _stack_global
PICKLES["pickle that breaks off after it ran"] = _broken


@attack(
    "state dict whose pickle takes names from the stack",
    "PEP 3154 (STACK_GLOBAL)",
    UnsafeBundleError,
    "data.pkl uses the pickle instruction FRAME",
)
def _(stage: Stage) -> Victim:
    return stage.loads_state_dict(with_pickle(_stack_global(stage)))


@attack(
    "pickle that breaks off after it ran",
    "nullifAI, ReversingLabs 2025",
    UnsafeBundleError,
    "data.pkl uses the pickle instruction POP,",
)
def _(stage: Stage) -> Victim:
    return stage.loads_state_dict(with_pickle(_broken(stage)))


def _instance(stage: Stage) -> bytes:
    """The INST instruction of protocol 0 imports and calls in one."""
    return f"(S{stage.shell!r}\niposix\nsystem\n.".encode()


PICKLES["pickle of protocol 0, which imports and calls in one"] = _instance


@attack(
    "pickle of protocol 0, which imports and calls in one",
    "Slaviero, Sour Pickles, Black Hat USA 2011",
    UnsafeBundleError,
    "data.pkl uses the pickle instruction STRING",
)
def _(stage: Stage) -> Victim:
    return stage.loads_state_dict(with_pickle(_instance(stage)))


@attack(
    "pickle that names an object by a number of the copyreg registry",
    "PEP 307 (extension registry)",
    UnsafeBundleError,
    "data.pkl uses the pickle instruction EXT1",
)
def _(stage: Stage) -> Victim:
    return stage.loads_state_dict(with_pickle(b"\x80\x02\x82\x01."))


@attack(
    "pickle that sets attributes of an object",
    "CWE-915; BUILD calls __setstate__",
    UnsafeBundleError,
    "data.pkl sets attributes of an object",
)
def _(stage: Stage) -> Victim:
    content = b"\x80\x02ccollections\nOrderedDict\n)R}X\x0c\0\0\0__setstate__X\x01\0\0\0xsb."
    return stage.loads_state_dict(with_pickle(content))


@attack(
    "pickle whose storage is an object of another kind",
    "persistent ids are calls into the reader: Python documentation, Persistence of External Objects",
    UnsafeBundleError,
    "data.pkl refers to something that is no storage of plain numbers",
)
def _(stage: Stage) -> Victim:
    return stage.loads_state_dict(with_pickle(honest_pickle().replace(b"storage", b"modules")))


@attack(
    "pickle that sets items of a tensor",
    "CVE-2026-24747 (memory corruption under weights_only)",
    UnsafeBundleError,
    "data.pkl sets items of something that is no mapping",
)
def _(stage: Stage) -> Victim:
    return stage.loads_state_dict(with_pickle(b"\x80\x02ccollections\nOrderedDict\n)R)X\x01\0\0\0aK\x01s."))


@attack(
    "tensor subclass that rebuilds itself by its own function",
    "torch._utils._rebuild_from_type_v2 calls __setstate__ of the type",
    UnsafeBundleError,
    "data.pkl imports 'torch._tensor._rebuild_from_type_v2'",
)
def _(stage: Stage) -> Victim:
    return stage.loads_state_dict(with_pickle(called("torch._tensor", "_rebuild_from_type_v2", stage.python)))


@attack(
    "pickled module instead of a state dict",
    "torchxrayvision weights on the Hub; GHSA-p8cm-mm2v-gwjm (MONAI, CVE-2025-58757)",
    UnsafeBundleError,
    "data.pkl imports 'torch.nn.modules.container.Sequential'",
)
def _(stage: Stage) -> Victim:
    buffer = io.BytesIO()
    torch.save(nn.Sequential(nn.Linear(4, 1)), buffer)
    return stage.loads_state_dict(buffer.getvalue())


def bare(stage: Stage) -> bytes:
    return called("posix", "system", stage.shell)


PICKLES["bare pickle with the name of an archive"] = bare


@attack(
    "bare pickle with the name of an archive",
    "CVE-2025-10155",
    UnsafeBundleError,
    "is a bare pickle, the format of torch before 1.6",
)
def _(stage: Stage) -> Victim:
    return stage.loads_state_dict(bare(stage))


@attack(
    "state dict that a verification must not run either",
    "PickleBall, Kellas et al. 2025, arXiv 2508.15987",
    UnsafeBundleError,
    "data.pkl imports 'posix.execv'",
)
def _(stage: Stage) -> Victim:
    stage.put(with_pickle(called("posix", "execv", stage.shell)), "model.pt", "state_dict")

    def verified() -> None:
        (finding,) = [f for f in verify_model(stage.folder) if f.file == "model.pt"]
        raise UnsafeBundleError(finding.message)

    return verified
