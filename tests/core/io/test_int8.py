"""Weights as 8-bit integers with one scale a row: what is lost, who reads them, and the command that writes them."""

import json
import math
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fantasyid_core.errors import WeightsError
from fantasyid_core.io import weights
from fantasyid_core.io.int8 import SCALE, SMALLEST, pack, unpack
from fantasyid_core.io.layout import save_part
from fantasyid_lab import nano
from tools import pack_weights

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.fixture
def layer() -> dict[str, torch.Tensor]:
    """A matrix, and what stays as it is beside it."""
    integers = torch.arange(8192).view(2, 4096)
    return {"w": draw(64, 80), "b": draw(SMALLEST), "small": draw(63, 65), "integers": integers}


@pytest.fixture(scope="module")
def tiny(standin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder in fp16, of test size."""
    model = nano.build(standin / "face_model", nano.TINY)
    with torch.no_grad():
        for parameter in model.transformer.parameters():  # many begin at zero
            parameter += 0.1 * torch.randn_like(parameter)
    return nano.write(model, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny, tmp_path / "tiny")


# The format


def test_a_matrix_becomes_bytes_and_a_scale_a_row_and_all_else_stays(layer):
    packed = pack(layer)
    assert {name: (x.dtype, *x.shape) for name, x in packed.items() if name.startswith("w")} == {
        "w": (torch.int8, 64, 80),
        "w" + SCALE: (torch.float32, 64),
    }
    assert packed["w"].abs().amax(1).eq(127).all()
    assert all(packed[name] is layer[name] for name in ("b", "small", "integers"))


def test_what_is_read_is_in_fp16_and_in_the_order_of_before(layer):
    read = unpack(pack(layer))
    assert list(read) == list(layer)
    assert (read["w"].dtype, read["w"].shape) == (torch.float16, (64, 80))
    assert all(read[name] is layer[name] for name in ("b", "small", "integers"))


@pytest.mark.parametrize("shape", [(1, SMALLEST), (SMALLEST, 1), (16, 16, 4, 4), (1, 64, 64), (2, 2048, 1, 1, 1)])
def test_the_first_dimension_is_that_of_rows(shape: tuple[int, ...]):
    x = draw(*shape)
    packed = pack({"x": x})
    assert packed["x" + SCALE].shape == shape[:1]
    torch.testing.assert_close(packed["x" + SCALE], x.half().float().flatten(1).abs().amax(1) / 127)


@settings(max_examples=100, deadline=None)
@given(
    exponents=st.lists(st.floats(-8, 4) | st.none(), min_size=1, max_size=6),
    tail=st.sampled_from([(SMALLEST,), (64, 64), (512, 2, 2, 2)]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_every_value_is_kept_to_half_a_step_of_its_row_whatever_the_other_rows_hold(exponents, tail, dtype, seed):
    sizes = torch.tensor([0.0 if e is None else 10**e for e in exponents], dtype=torch.float64)
    values = torch.rand(len(sizes), *tail, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    x = (values * sizes.view(-1, *(1,) * len(tail))).to(dtype)
    packed = pack({"x": x})
    read = unpack(packed)["x"].double()

    held = x.half().double()  # what a file in fp16 would hold
    largest = held.flatten(1).abs().amax(1)
    rounding = (read.abs() * 2**-11).clamp(min=2**-25)
    step = (largest / 127 * (1 + 1e-6)).view(-1, *(1,) * len(tail))
    assert ((read - held).abs() <= step / 2 + rounding).all()
    assert torch.equal(read.flatten(1).abs().amax(1), largest)  # to the bit
    assert read[sizes == 0].eq(0).all()
    assert_same(pack(unpack(packed)), packed)
    assert_same(pack(packed), packed)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e5])
def test_what_fp16_cannot_hold_is_refused(layer, value: float):
    layer["w"][3, 5] = value
    with pytest.raises(WeightsError, match=r"The tensor w cannot be stored in 8 bits: .* not finite, or beyond"):
        pack(layer)


def test_plain_weights_are_returned_as_they_are():
    plain = {"a": draw(64, 80), "b": torch.arange(9000).view(2, -1), "c": torch.zeros(3, dtype=torch.uint8)}
    assert unpack(plain) is plain


def test_what_comfyui_quantised_stays_as_it_is(layer):
    theirs = {"a.weight": torch.ones(4, 4, dtype=torch.int8), "a.comfy_quant": torch.zeros(9, dtype=torch.uint8)}
    unpacked = unpack(pack(layer) | theirs)
    assert all(unpacked[name] is tensor for name, tensor in theirs.items())
    assert unpacked["w"].dtype == torch.float16


WRONG = {
    "no scales": (lambda x: x.pop("w" + SCALE), r"8-bit tensor w has no scales: expected w\.row_scale"),
    "no tensor": (lambda x: x.pop("w"), r"w\.row_scale holds the scales of an 8-bit tensor, but w is missing"),
    "no 8-bit tensor": (lambda x: x.update(w=draw(64, 80)), r"but w holds torch\.float32, not int8"),
    "too few": (
        lambda x: x.update({"w" + SCALE: torch.ones(63)}),
        r"w \(64, 80\): expected .* \(64,\), found .* \(63,\)",
    ),
    "one for all": (lambda x: x.update({"w" + SCALE: torch.ones(())}), r"expected .* \(64,\), found .* \(\)"),
    "two-dimensional": (lambda x: x.update({"w" + SCALE: torch.ones(64, 1)}), r"found torch\.float32 \(64, 1\)"),
    "integers": (lambda x: x.update({"w" + SCALE: torch.ones(64, dtype=torch.int32)}), r"found torch\.int32 \(64,\)"),
    "of no dimension": (
        lambda x: x.update({"n": torch.tensor(1, dtype=torch.int8), "n" + SCALE: torch.tensor(1.0)}),
        r"does not fit the 8-bit tensor n \(\)",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_pairs_that_do_not_fit_are_named_with_the_file_and_the_cure(layer, tmp_path: Path, wrong: str):
    alter, message = WRONG[wrong]
    packed = pack(layer)
    alter(packed)
    with pytest.raises(WeightsError, match=message):
        unpack(packed)
    save_file(packed, tmp_path / "tower.safetensors")
    with pytest.raises(WeightsError, match=rf"tower\.safetensors: .*{message}.*[Cc]opy or download"):
        weights.read(tmp_path / "tower.safetensors")


# Files


def test_a_matrix_and_its_scales_may_lie_in_two_files(layer, tmp_path: Path):
    packed = pack(layer)
    shards = {"a.safetensors": ["w", "b"], "b.safetensors": ["w" + SCALE, "small", "integers"]}
    for file, names in shards.items():
        save_file({name: packed[name] for name in names}, tmp_path / file)
    where = {name: file for file, names in shards.items() for name in names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert_same(weights.read(tmp_path), unpack(packed))


def test_a_pytorch_file_may_be_packed_too(layer, tmp_path: Path):
    torch.save({"E": pack(layer)}, tmp_path / "deca_model.tar")
    expected = {f"E.{name}": x for name, x in unpack(pack(layer)).items()}
    assert_same(weights.read(tmp_path / "deca_model.tar"), expected)


def test_parts_are_saved_in_8_bits_on_demand_and_shared_out_by_what_is_stored(layer, tmp_path: Path):
    layer |= {f"w{i}": draw(64, 80, seed=i) for i in range(5)}
    save_part(tmp_path, layer, None, "model", shards=3, dtype=torch.float16, int8=True)
    expected = pack({name: x.half() if x.is_floating_point() else x for name, x in layer.items()})
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in expected.values())
    assert sorted(index["weight_map"]) == sorted(expected)
    shards = [load_file(file) for file in sorted(tmp_path.glob("*.safetensors"))]
    assert_same({name: x for shard in shards for name, x in shard.items()}, expected)
    assert [sum(x.nbytes for x in s.values()) < 70_000 for s in shards] == [True] * 3  # integers alone have 64 KiB
    assert_same(weights.read(tmp_path), unpack(expected))


def test_parts_are_saved_as_they_are_by_default(layer, tmp_path: Path):
    save_part(tmp_path, layer, None, "model")
    assert_same(load_file(tmp_path / "model.safetensors"), layer)


def test_how_many_files_may_depend_on_the_bytes_that_are_stored(layer, tmp_path: Path):
    sizes = []
    save_part(tmp_path, layer, None, "model", shards=lambda size: sizes.append(size) or 2, int8=True)
    assert sizes == [sum(x.nbytes for x in pack(layer).values())]
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


# The readers


def test_a_packed_model_is_read_as_what_was_packed(tiny: Path, copy: Path):
    for part in pack_weights.PARTS:
        pack_weights.pack_part(copy, part)
    model, files = nano.read(copy), nano.locate(tiny)
    modules = {
        files.transformer: nano.published_tensors(model),
        files.tower: model.encoder.tower.state_dict(),
        files.regressor: model.regressor.state_dict(),
    }
    for file, found in modules.items():
        plain = weights.read(file)
        expected = unpack(pack(plain))
        assert any(not torch.equal(expected[name], plain[name]) for name in plain)  # or nothing was put to the test
        for name, tensor in expected.items():
            if not name.startswith("rope."):  # constructed, not read
                assert torch.equal(found[name], tensor.to(found[name].dtype)), name


# The command


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["pack_weights", *map(str, arguments)])
    pack_weights.main()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_command_packs_three_parts_and_leaves_the_rest_alone(copy: Path, monkeypatch, capsys):
    before = contents(copy)
    run(monkeypatch, copy)
    after = contents(copy)
    networks = {path.as_posix() for path in pack_weights.FILES.values()}
    networks.add("transformer/diffusion_pytorch_model.safetensors")
    assert {name for name in after if after[name] != before[name]} == networks
    assert after.keys() == before.keys()
    assert all(len(after[name]) < len(before[name]) for name in networks)
    for name in networks:
        with safe_open(copy / name, "pt") as file:
            assert any(key.endswith(SCALE) for key in file.keys())  # noqa: SIM118 (not a dictionary)
    for line, part in zip(capsys.readouterr().out.splitlines(), pack_weights.PARTS, strict=True):
        (name,) = (name for name in networks if name.startswith(f"{part}/"))
        sizes = (len(files[name]) / 1e6 for files in (before, after))
        assert line.startswith("{}: {:.2f} MB → {:.2f} MB, ".format(part, *sizes))
        assert re.search(r"0\.\d\d% rms at most \([\w.]+\)$", line)


def test_a_second_run_changes_nothing(copy: Path, monkeypatch):
    monkeypatch.setattr(nano, "SHARD_BYTES", 40_000)
    run(monkeypatch, copy)
    once = contents(copy)
    run(monkeypatch, copy)
    assert contents(copy) == once


def test_the_transformer_comes_in_files_as_small_as_the_repository_s(copy: Path, monkeypatch):
    monkeypatch.setattr(nano, "SHARD_BYTES", 40_000)
    stored = sum(x.nbytes for x in pack(weights.read(copy / "transformer")).values())
    run(monkeypatch, copy, "--parts", "transformer")
    shards = sorted((copy / "transformer").glob("*.safetensors"))
    assert len(shards) == math.ceil(stored / 40_000) > 1
    assert shards[0].name == f"diffusion_pytorch_model-00001-of-{len(shards):05}.safetensors"
    assert (copy / "transformer" / "config.json").is_file()
    nano.read(copy)


def test_what_stays_in_floating_point_comes_in_fp16(standin: Path, tmp_path: Path):
    shutil.copytree(standin, tmp_path / "float32")
    for part in pack_weights.PARTS:
        pack_weights.pack_part(tmp_path / "float32", part)
    for path in ("transformer", *pack_weights.FILES.values()):
        floating = {x.dtype for x in weights.read(tmp_path / "float32" / path).values() if x.is_floating_point()}
        assert floating == {torch.float16}


def test_averaged_weights_are_those_that_are_packed(copy: Path):
    shutil.copytree(copy / "transformer", copy / "transformer_ema")
    before = contents(copy / "transformer")
    pack_weights.pack_part(copy, "transformer")
    assert contents(copy / "transformer") == before
    assert contents(copy / "transformer_ema") != before


def test_single_parts_can_be_packed(copy: Path, monkeypatch):
    before = contents(copy)
    run(monkeypatch, copy, "--parts", "face_model")
    after = contents(copy)
    assert [name for name in before if after.get(name) != before[name]] == ["face_model/deca_model.safetensors"]


def test_the_error_is_that_of_what_is_read_afterwards(copy: Path):
    before = weights.read(copy / "transformer")
    done = pack_weights.pack_part(copy, "transformer")
    after = weights.read(copy / "transformer")
    name, error = done.worst
    held = {key: x.double() for key, x in before.items() if x.any()}
    lost = {key: ((after[key].double() - x).norm() / x.norm()).item() for key, x in held.items()}
    assert error == pytest.approx(max(lost.values()))
    assert lost[name] == pytest.approx(error)
    assert 1e-3 < error < 2e-2


def test_what_cannot_be_packed_is_said(copy: Path, monkeypatch):
    (copy / "face_encoder" / "image_tower.safetensors").unlink()
    with pytest.raises(SystemExit, match=r"has no face_encoder.image_tower\.safetensors: expected a model's folder"):
        run(monkeypatch, copy)
    broken = weights.read(copy / "face_model" / "deca_model.safetensors")
    broken["layers.2.weight"] = torch.full_like(broken["layers.2.weight"], math.nan)
    save_file(broken, copy / "face_model" / "deca_model.safetensors")
    before = contents(copy)
    with pytest.raises(SystemExit, match=r"layers\.2\.weight cannot be stored"):
        run(monkeypatch, copy, "--parts", "face_model")
    assert contents(copy) == before
