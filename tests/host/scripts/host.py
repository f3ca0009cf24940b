"""For scripts that test the pack's adapters in one process with the host's modules, without its server.

A script calls `start`, imports the host's modules and `pack.…`, and ends with `report`; pytest runs it as a process of
its own, because the host reads the command line and puts its folder on `sys.path`.
"""

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


def start(base: Path, *arguments: str) -> None:
    """Make the host's modules importable, with `base` as its base directory, and the pack as the package `pack`.

    With dynamic VRAM where the test asks for it by `HOST_DYNAMIC_VRAM`.
    """
    tools = sys.modules["tools"] = ModuleType("tools")
    tools.__path__ = [str(ROOT / "tools")]
    from tools import in_process

    in_process.start(base, *(arguments or ("--cpu",)), dynamic_vram=os.environ.get("HOST_DYNAMIC_VRAM") == "1")


def save_glb() -> type:
    """ComfyUI's node SaveGLB, which has moved after 0.19."""
    try:
        from comfy_extras.nodes_save_3d import SaveGLB
    except ImportError:
        from comfy_extras.nodes_hunyuan3d import SaveGLB
    SaveGLB.hidden = type("Hidden", (), {"prompt": None, "extra_pnginfo": None})
    return SaveGLB


def report(**found: Any) -> None:
    """Hand the findings to the test: the last line of the output, as JSON."""
    sys.stdout.write("\n" + json.dumps(found) + "\n")
