"""Rows of the benchmark that need a GPU, on the CPU: no compiler behind torch.compile, 8 bits by the plain twin."""

import contextlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.bench import Bench  # noqa: E402
from benchmarks.modes import MODES  # noqa: E402
from benchmarks.ours import Host  # noqa: E402
from benchmarks.workload import SMOKE  # noqa: E402
from tests.host.scripts.host import report  # noqa: E402


def compiled(host: Host, model):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model = model.clone()
    set_torch_compile_wrapper(model=model, backend="eager")
    return model


torch.set_grad_enabled(False)
Host.compiled = compiled
bench = Bench(SMOKE, "cpu", Path(sys.argv[1]), Path(sys.argv[1]), steps=2)
rows = {mode.name: mode.rows for mode in MODES}
found = list(rows[name := "ours, exact, compiled by the host's node"](bench, name))  # the first: nothing is there yet

from pack.fantasyid_core.dit import fp8  # noqa: E402

fp8.missing = lambda device: None
found += rows[name := "ours, fp8 products"](bench, name)
Host.only_free = lambda host, gib: contextlib.nullcontext(0)
found += rows[name := "ours, exact, 7 GiB free"](bench, name)
bench.folder = bench.base / "random" / "model"
found += rows[name := "whole run, 6 GiB free"](bench, name)
report(**{row.name: [row.error, row.note] for row in found})
