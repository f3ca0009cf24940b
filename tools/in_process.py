"""The host's modules and the pack in one process, without the server: for adapter tests and benchmarks."""

import sys
from pathlib import Path
from types import ModuleType

from .environment import ROOT, find_host
from .launch_comfy import fit_imports


def start(base: Path, *arguments: str) -> None:
    """Make the host's modules importable, with `base` as its base directory, and the pack as the package `pack`.

    To be called before anything of the host is imported: it reads the command line when it is, and its folder goes to
    the front of `sys.path`, since it has a top-level module `nodes` as we have a folder.
    """
    pack = sys.modules["pack"] = ModuleType("pack")
    pack.__path__ = [str(ROOT)]
    fit_imports()
    sys.path.insert(0, str(find_host()))
    sys.argv = ["main.py", "--base-directory", str(base), *arguments]
    import comfy.options

    comfy.options.enable_args_parsing()
