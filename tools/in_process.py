"""The host's modules and the pack in one process, without the server: for adapter tests and benchmarks."""

import importlib.util
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
    if importlib.util.find_spec("comfy_aimdo") and importlib.util.find_spec("comfy.memory_management"):
        _enable_dynamic_vram()


def _enable_dynamic_vram() -> None:
    """What ComfyUI's `main.py` does before its server starts, where the card and the arguments allow dynamic VRAM."""
    import comfy_aimdo.control
    from comfy.cli_args import enables_dynamic_vram

    if not enables_dynamic_vram():
        return
    comfy_aimdo.control.init(simple_vram_headroom=None, nvml_pressure=True)
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher

    devices = comfy.model_management.get_all_torch_devices()
    if not any(device.type == "cuda" for device in devices):
        return
    if comfy_aimdo.control.init_devices((device.index, 0) for device in devices):
        comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
        comfy.memory_management.aimdo_enabled = True
