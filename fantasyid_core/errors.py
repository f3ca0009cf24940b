"""Typed errors of the core. Every message says what was wrong with which input, what was expected and what to do."""

import re

SHORT_MODULE = "FantasyID"
_LONGEST = 200
_UNSAFE_ADVICE = re.compile("weights_only|allow_pickle|trust_remote_code|add_safe_globals", re.IGNORECASE)


class FantasyIDError(Exception):
    """Base of every error that this library raises on purpose.

    ComfyUI's page begins with the error's module: `FantasyID.MeshError` tells an artist more than this file's path.
    """

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        cls.__module__ = SHORT_MODULE

    def __reduce__(self) -> tuple:  # pickle would look for a module of the short name
        return _restore, (type(self).__name__, self.args)


class ImageError(FantasyIDError):
    """A photo, frame or mask cannot be used: wrong shape, empty, not finite."""


class FaceNotFoundError(FantasyIDError):
    """No face, or not the face that was asked for, is in a photo."""


class MeshError(FantasyIDError):
    """A mesh, vertex file or topology cannot be used."""


class IdentityError(FantasyIDError):
    """An identity does not fit the model it is applied to."""


class SamplingError(FantasyIDError):
    """Sizes, steps or conditioning of a sampling run do not fit together."""


class WeightsMissingError(FantasyIDError):
    """A weights file is not where it was looked for."""


class WeightsError(FantasyIDError):
    """A weights file is there but truncated, unsafe or of another model."""


class PackageMissingError(FantasyIDError):
    """An optional Python package is missing or broken."""


class DownloadError(FantasyIDError):
    """A download failed, was cut short or does not match its hash."""


class SaveError(FantasyIDError):
    """A file could not be written."""


class TrainingError(FantasyIDError):
    """A training run cannot start or go on: its configuration, its data or its folder."""


class HardwareError(FantasyIDError):
    """This machine cannot do what was switched on."""


def cause(error: BaseException) -> str:
    """What another library's error says, for our message: its first line, without advice to open a file unsafely."""
    line = (str(error).strip().splitlines() or [""])[0][:_LONGEST]
    return type(error).__name__ if not line or _UNSAFE_ADVICE.search(line) else line


def _restore(name: str, arguments: tuple) -> FantasyIDError:
    kinds = {kind.__name__: kind for kind in (FantasyIDError, *FantasyIDError.__subclasses__())}
    return kinds[name](*arguments)


FantasyIDError.__module__ = SHORT_MODULE
