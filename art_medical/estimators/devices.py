# SPDX-License-Identifier: Apache-2.0
"""Names of devices: ART's ``cpu`` and ``gpu``, and those of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from art_medical.errors import InputError

if TYPE_CHECKING:
    import torch


def torch_device(name: str) -> torch.device:
    """The device of that name; ``gpu`` is the processor where there is no graphics card, as in ART.

    :raises InputError: If torch knows no such device.
    """
    import torch

    if name == "gpu":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device {name!r}; use cpu, gpu or a torch device such as cuda:1") from error
