"""Memory that loading takes: the pages of mapped files are given back, other memory is left alone."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import computer_memory, model_folder
from benchmarks.workload import SMOKE
from fantasyid_core.io import weights
from fantasyid_core.io.mmap import release, store_as

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MIB = 2**20


def held() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_released_pages_leave_the_memory_and_can_be_read_again(tmp_path):
    values = torch.arange(16 * MIB, dtype=torch.float32)
    save_file({"x": values, "y": torch.ones(3)}, tmp_path / "a.safetensors")
    expected = values.sum().item()
    del values
    tensors = weights.read(tmp_path / "a.safetensors")
    tensors["x"].sum()
    before = held()
    release(tensors.values())
    assert held() < before - 60 * MIB
    assert tensors["x"].sum().item() == expected
    assert tensors["y"].tolist() == [1, 1, 1]


def test_memory_that_is_no_file_keeps_its_values():
    own = torch.full((MIB,), 3.0)
    release([own, own[5:], torch.empty(0)])
    assert own.eq(3).all()


def test_weights_are_stored_in_another_type_in_place():
    first, second = torch.tensor([1.5, 2.25]), torch.tensor([3.0], dtype=torch.bfloat16)
    store_as([first, second], torch.bfloat16)
    assert (first.dtype, first.tolist(), second.tolist()) == (torch.bfloat16, [1.5, 2.25], [3.0])


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """What `benchmarks.computer_memory` finds on a transformer of 0.19 GiB in bf16, by stage, in sizes of the file."""
    config = {**SMOKE.config, "num_attention_heads": 16, "num_layers": 5}
    folder = tmp_path_factory.mktemp("models") / "wide"
    model_folder.write(folder, replace(SMOKE, name="wide", config=config, dtype=torch.bfloat16))
    size = sum(file.stat().st_size for file in (folder / "transformer").glob("*.safetensors")) / 2**30
    found = computer_memory.measure(folder, "cpu", "bf16", "fp16", "fp8_e4m3fn")
    return {stage["name"]: stage["peak"] / size for stage in found}


def test_loading_holds_the_weights_once(stages):
    """The rest is the VAE, and what Python needs for a thousand tensors."""
    assert stages["bf16, read once"] < 1.2


def test_weights_stored_in_another_type_are_not_held_twice(stages):
    """Beside them there are the pages of the file that are let go next, 64 MiB of 200 here."""
    assert stages["fp16, loaded"] < 1.5
    assert stages["fp8_e4m3fn, loaded"] < 1.1
