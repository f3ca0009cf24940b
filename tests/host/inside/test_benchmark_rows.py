"""Rows of the benchmarks that need a GPU, on the CPU: nothing is compiled, 8 bits are the eager reference's."""

import contextlib

import pytest
from comfy_api.torch_helpers import set_torch_compile_wrapper
from pack.fantasyid_core.dit import fp8

from benchmarks.bench import Bench
from benchmarks.modes import MODES
from benchmarks.ours import Host
from benchmarks.workload import SMOKE


def compiled(host: Host, model):
    model = model.clone()
    set_torch_compile_wrapper(model=model, backend="eager")
    return model


@pytest.fixture(scope="module")
def bench(base) -> Bench:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tools.in_process.start", lambda *_: None)  # it was started
        patch.setattr(Host, "compiled", compiled)
        patch.setattr(Host, "only_free", lambda host, gib: contextlib.nullcontext(0))
        patch.setattr(fp8, "missing", lambda device: None)
        yield Bench(SMOKE, "cpu", base, base / "random" / "model", steps=2)


def rows(bench: Bench, mode: str) -> list:
    measure = next(known.rows for known in MODES if known.name == mode)
    return list(measure(bench, mode))


def test_compiled_by_comfyui_s_node(bench):
    [row] = rows(bench, "ours, exact, compiled by the host's node")
    assert row.error < 1e-3
    assert row.note.startswith("first step ")
    assert "1 graphs, 0 more for another prompt, seed, strength, identity" in row.note


def test_8_bit_products(bench):
    [row] = rows(bench, "ours, fp8 matmuls")
    assert 1e-4 < row.error < 0.2


def test_little_free_memory(bench):
    [row] = rows(bench, "ours, exact, 7 GiB free")
    assert row.error == 0


def test_a_whole_run_in_little_memory(bench):
    note = {row.name: row.note for row in rows(bench, "whole run, 6 GiB free")}["whole run, 6 GiB free"]
    assert all(part in note for part in ("load", "text", "identity", "sampling, 50 steps", "VAE decode", "9 frames"))
