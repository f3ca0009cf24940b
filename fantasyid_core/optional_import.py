"""Import optional packages where they are used, with an error that an artist can act on."""

import importlib
import importlib.util
from collections.abc import Sequence
from types import ModuleType

from .errors import PackageMissingError, cause


def require(module: str, purpose: str, install: str | None = None, names: Sequence[str] = ()) -> ModuleType:
    """Import `module` (dotted name), and what is used of it, or say which package is missing and how to install it.

    A package that is installed but broken (wrong binary, failing import, too old or too new for another package) is
    reported with its own error text.

    Args:
        purpose: what needs it, as the error says it.
        install: what pip is told to install; default: the module's first name.
        names: what is used of `module`. Packages such as diffusers and transformers import themselves without error
            and fail only where a name of theirs is first used.

    Raises:
        PackageMissingError: the import failed, for whatever reason.
    """
    try:
        found = importlib.import_module(module)
        for name in names:
            getattr(found, name)
        return found
    except Exception as error:  # a broken binary raises OSError, RuntimeError and others besides ImportError
        package = install or module.split(".")[0]
        broken = _is_installed(module.split(".")[0])
        raise PackageMissingError(
            f"{purpose} needs the Python package '{module.split('.')[0]}', which could not be imported "
            f"({type(error).__name__}: {cause(error)}). "
            + (
                "It is installed, but broken or of a version that does not fit the others. Update it in "
                f"ComfyUI's Python with: python -m pip install --upgrade {package}"
                if broken
                else f"Install it into ComfyUI's Python with: python -m pip install {package}"
            )
        ) from error


def require_diffusers(purpose: str) -> ModuleType:
    """`require` for diffusers' schedulers, which are all that the pack uses of it. Raises PackageMissingError."""
    names = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
    return require("diffusers", purpose, "'diffusers>=0.35' transformers", names)


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # a parent that cannot be imported, or a module without a spec
        return True
