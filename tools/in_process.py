"""The host's modules and the pack in one process, without the server: for adapter tests and benchmarks."""

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from .environment import ROOT, find_host
from .launch_comfy import fit_imports


def start(base: Path, *arguments: str, dynamic_vram: bool | None = None) -> None:
    """Make the host's modules importable, with `base` as its base directory, and the pack as the package `pack`.

    To be called before anything of the host is imported: it reads the command line when it is, and its folder goes to
    the front of `sys.path`, since it has a top-level module `nodes` as we have a folder.

    Args:
        dynamic_vram: on or off; None as the host's `main.py` decides. On a CPU, where the host never switches it on by
            itself, patchers then come out plain, but layers of the host get their parameters only with their weights.
    """
    pack = sys.modules["pack"] = ModuleType("pack")
    pack.__path__ = [str(ROOT)]
    fit_imports()
    sys.path.insert(0, str(find_host()))
    sys.argv = ["main.py", "--base-directory", str(base), *arguments]
    import comfy.options

    comfy.options.enable_args_parsing()
    if dynamic_vram is None and has_dynamic_vram(find_host()):
        from comfy.cli_args import enables_dynamic_vram

        dynamic_vram = enables_dynamic_vram()
    if dynamic_vram:
        _switch_on_dynamic_vram()


def has_dynamic_vram(host: Path) -> bool:
    """Whether this ComfyUI brings dynamic VRAM (comfy-aimdo) and the running Python has what it needs."""
    return importlib.util.find_spec("comfy_aimdo") is not None and (host / "comfy" / "memory_management.py").is_file()


def _switch_on_dynamic_vram() -> None:
    import comfy_aimdo.control

    # before CUDA is used
    parameters = inspect.signature(comfy_aimdo.control.init).parameters  # ComfyUI 0.19's takes none
    options = {"simple_vram_headroom": None, "nvml_pressure": True}
    comfy_aimdo.control.init(**{name: value for name, value in options.items() if name in parameters})
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher

    if not comfy.model_management.is_device_cpu(comfy.model_management.get_torch_device()):
        _give_devices(comfy_aimdo.control, comfy.model_management)
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True


def _give_devices(control: ModuleType, management: ModuleType) -> None:
    if hasattr(control, "init_devices"):
        ready = control.init_devices((device.index, 0) for device in management.get_all_torch_devices())
    else:  # ComfyUI 0.19 knows one device
        ready = control.init_device(management.get_torch_device().index)
    if not ready:
        raise RuntimeError("comfy-aimdo does not work on this machine: start without dynamic_vram.")
