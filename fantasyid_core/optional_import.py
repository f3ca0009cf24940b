"""Import optional packages where they are used, with an error that an artist can act on."""

import importlib
from types import ModuleType

from .errors import PackageMissingError


def require(module: str, purpose: str, install: str | None = None) -> ModuleType:
    """Import `module` (dotted name) or say which package is missing and how to install it.

    A package that is installed but broken (wrong binary, failing import) is reported with its own error text.

    Raises:
        PackageMissingError: the import failed, for whatever reason.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken binary raises OSError, RuntimeError and others besides ImportError
        package = install or module.split(".")[0]
        raise PackageMissingError(
            f"{purpose} needs the Python package '{package}', which could not be imported "
            f"({type(error).__name__}: {error}). Install it into ComfyUI's Python with: python -m pip install {package}"
        ) from error
