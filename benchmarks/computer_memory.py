"""How much of the computer's memory loading takes: `python -m benchmarks.computer_memory FOLDER`, in a fresh process.

Linux only. Counted is what the process holds (RSS) beyond what it held before, at most: its own pages and those of
mapped files. The latter the system can take back at any time, but they are counted all the same.
"""

import argparse
import contextlib
import gc
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from .bench import Bench
from .measure import GIB, MEMORY, Row

ROOT = Path(__file__).resolve().parent.parent
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def rows(bench: Bench, name: str) -> Iterator[Row]:
    """Load the model in a process of its own, put it on the card, and let the host take it back."""
    from . import model_folder

    folder = model_folder.write(bench.folder, bench.work)
    size = sum(file.stat().st_size for file in (folder / "transformer").glob("*.safetensors")) / GIB
    for stage in measure(folder, bench.device):
        note = f"the file has {size:.2f} GiB; at the end {stage['kept']}"
        yield Row(f"{name}: {stage['name']}", stage["milliseconds"], stage["peak"], None, note, MEMORY)


def measure(folder: Path, device: str, *weight_dtypes: str) -> list[dict]:
    """The stages as a process of its own reports them. Raises RuntimeError with the end of what it said."""
    command = [sys.executable, "-m", "benchmarks.computer_memory", "--device", device, str(folder), *weight_dtypes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"loading failed: {done.stderr[-1500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def held() -> dict[str, float]:
    """GiB of this process: VmRSS now, VmHWM at most, RssAnon its own pages, RssFile those of mapped files."""
    import resource  # not on Windows

    found = re.findall(r"^(VmRSS|VmHWM|RssAnon|RssFile):\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    missing = {"VmHWM": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "RssAnon": math.nan, "RssFile": math.nan}
    return {name: float(kilobytes) / 2**20 for name, kilobytes in (missing | dict(found)).items()}


class Stages:
    """Time and peak of one thing after the other."""

    def __init__(self):
        self.before, self.found = held(), []

    def run(self, name: str, do) -> object:
        with contextlib.suppress(OSError):  # in some containers it is not allowed: VmHWM is then of all stages so far
            CLEAR.write_text("5")  # VmHWM begins anew
        start = time.perf_counter()
        result = do()
        milliseconds, now = 1000 * (time.perf_counter() - start), held()
        own, mapped = (now[key] - self.before[key] for key in ("RssAnon", "RssFile"))
        self.found.append(
            {
                "name": name,
                "milliseconds": milliseconds,
                "peak": now["VmHWM"] - self.before["VmRSS"],
                "kept": f"{own:.2f} GiB of its own and {mapped:.2f} of mapped files",
            }
        )
        return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.computer_memory", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a model's folder in the published layout")
    parser.add_argument("weight_dtype", nargs="*", default=["default"])
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    from tools.in_process import start

    with tempfile.TemporaryDirectory() as base:
        start(Path(base), *(["--cpu"] if arguments.device == "cpu" else []))
        import comfy.sd  # noqa: F401 (what importing takes is not what loading takes)
        import folder_paths

        folder_paths.add_model_folder_path("fantasyid", str(arguments.folder.parent))
        from pack.nodes import loading  # noqa: F401
        from pack.nodes.host import encoder, model, vae  # noqa: F401

        if arguments.device == "cuda":
            torch.zeros(1, device="cuda")
        stages = Stages()
        for weight_dtype in arguments.weight_dtype:
            _load(stages, arguments.folder.name, weight_dtype)
            gc.collect()
    print(json.dumps(stages.found))
    return 0


def _load(stages: Stages, name: str, weight_dtype: str) -> None:
    """Load a model, read it, and where there is a card, put it there and let the host take it back."""
    import comfy.model_management as management
    from pack.nodes.loading import FantasyIDLoadModel

    model, _vae, _encoder = stages.run(
        f"{weight_dtype}, loaded", lambda: FantasyIDLoadModel.run(name, weight_dtype).args
    )
    stages.run(f"{weight_dtype}, read once", lambda: _read(model.model))
    if model.load_device.type == "cuda":
        stages.run(f"{weight_dtype}, on the card", lambda: management.load_models_gpu([model]))
        stages.run(f"{weight_dtype}, taken back", management.unload_all_models)


def _read(module) -> None:
    """Touch every page of the weights, as using them would."""
    for tensor in module.state_dict().values():
        tensor.flatten().view(torch.uint8)[::4096].sum()


if __name__ == "__main__":
    sys.exit(main())
