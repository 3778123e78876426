# SPDX-License-Identifier: Apache-2.0
"""Errors: one base class, one subclass per cause; each carries the exit code of the command line."""

from __future__ import annotations


class ArtMedicalError(Exception):
    """Base of every error that this package raises on purpose: what was wrong, with which value, what to do."""

    exit_code = 1


class InputError(ArtMedicalError, ValueError):
    """An array or argument that cannot be used: wrong shape, range, label or type."""

    exit_code = 3


class ImageError(InputError):
    """A file that cannot be read as an image, or cannot be written without loss."""


class ModelError(ArtMedicalError, ValueError):
    """A model that is unknown, or whose card or weights are not what they claim to be."""

    exit_code = 4


class UnsafeBundleError(ModelError):
    """A model repository is refused because of what it contains: code, or numbers that nobody can mean."""


class IntegrityError(ModelError):
    """A file whose length, hash or signature is not the one that was promised."""


class HubError(ModelError):
    """Something on the Hub that cannot be had: no network, no such repository, revision or file, no access."""


class UnpinnedError(ModelError):
    """A model that is not pinned: what its reference or card stands for may change."""


class StudyError(ArtMedicalError, ValueError):
    """A study file that is not valid; the message names file and line."""

    exit_code = 5


class DomainWarning(UserWarning):
    """Pixels look as if they were in another range than the classifier's domain."""


class PluginWarning(UserWarning):
    """A plug-in of another package that is left out, with the reason."""
