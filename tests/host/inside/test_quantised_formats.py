"""A transformer in ComfyUI's quantised formats: it loads through the node and predicts nearly what it did before."""

import json
import shutil
from pathlib import Path

import comfy.ops
import comfy.sd
import pytest
import torch
from comfy.model_management import load_models_gpu
from pack.fantasyid_core.errors import WeightsError
from pack.fantasyid_core.io import weights
from pack.fantasyid_core.io.layout import save_part
from pack.nodes.host.compat import quantised_operators
from pack.nodes.host.options import transformer_of
from pack.nodes.loading import FantasyIDLoadModel
from pack.tools.assets.quantise import quantise
from torch import Tensor

FORMATS, _ = quantised_operators(torch.float32, torch.device("cpu"))
# relative error of a prediction: the standin's layers are a few dozen channels wide, so roundings hardly average out
ERRORS = {"float8_e4m3fn": 0.03, "float8_e5m2": 0.06, "mxfp8": 0.04, "int8_tensorwise": 0.015, "nvfp4": 0.12}
LAYER = "transformer_blocks.0.attn1.to_q"
SEED = torch.Generator().manual_seed(0)
X, TEXT = torch.randn(1, 16, 3, 16, 24, generator=SEED), torch.randn(1, 226, 32, generator=SEED)

needs_formats = pytest.mark.skipif(not FORMATS, reason="this ComfyUI has no formats that a file names")


@pytest.fixture(scope="module", autouse=True)
def models(base, standin) -> Path:
    """The folder of models, with the stand-in as `plain`."""
    return shutil.copytree(standin, base / "models" / "fantasyid" / "plain").parent


def write(models: Path, name: str, tensors: dict[str, Tensor]) -> None:
    """The stand-in once more, with this transformer."""
    folder = shutil.copytree(models / "plain", models / name)
    for file in (folder / "transformer").glob("*.safetensors*"):
        file.unlink()
    save_part(folder / "transformer", tensors, None, "diffusion_pytorch_model")


def named(quant_format: str) -> dict[str, Tensor]:
    """The name of a format as files have it."""
    note = json.dumps({"format": quant_format}).encode()
    return {f"{LAYER}.comfy_quant": torch.tensor(list(note), dtype=torch.uint8)}


def load(name: str, weight_dtype: str = "default"):
    return FantasyIDLoadModel.run(name, weight_dtype).args[0]


def prediction(model) -> Tensor:
    load_models_gpu([model])
    sigma, image = torch.tensor([5.0]), torch.zeros(1, 16, 3, 16, 24)
    options = model.model_options["transformer_options"]
    return model.model.apply_model(X, sigma, c_concat=image, c_crossattn=TEXT, transformer_options=options)


def error(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@needs_formats
@pytest.mark.parametrize("name", sorted(ERRORS.keys() & FORMATS))
def test_a_quantised_transformer_loads_and_predicts_nearly_the_same(models, name):
    write(models, name, quantise(weights.read(models / "plain" / "transformer"), name))
    model, exact = load(name), prediction(load("plain"))
    assert isinstance(transformer_of(model).get_submodule(LAYER).weight, comfy.ops.QuantizedTensor)
    assert 1e-4 < error(prediction(model), exact) < ERRORS[name]
    # a LoRA acts on it as on any other
    drawn = torch.Generator().manual_seed(1)
    lora = {
        "transformer.transformer_blocks.0.ff.net.2.lora_A.weight": torch.randn(2, 128, generator=drawn),
        "transformer.transformer_blocks.0.ff.net.2.lora_B.weight": torch.randn(32, 2, generator=drawn),
    }
    patched, wanted = (comfy.sd.load_lora_for_models(m, None, lora, 0.3, 0)[0] for m in (model, load("plain")))
    # ComfyUI quantises what it has patched
    assert error(prediction(patched), prediction(wanted)) < error(prediction(wanted), exact) / 2


@needs_formats
def test_its_layers_hold_what_the_file_holds(models):
    name = sorted(ERRORS.keys() & FORMATS)[0]
    write(models, "again", quantise(weights.read(models / "plain" / "transformer"), name))
    state = transformer_of(load("again")).state_dict()
    stored = weights.read(models / "again" / "transformer")
    for suffix in ("weight", "weight_scale", "bias"):
        assert torch.equal(state[f"{LAYER}.{suffix}"].float(), stored[f"{LAYER}.{suffix}"].float()), suffix
    assert f"{LAYER}.comfy_quant" in state


def test_a_format_that_this_comfyui_does_not_know_is_named_with_the_cure(models):
    write(models, "newer", weights.read(models / "plain" / "transformer") | named("a_newer_format"))
    with pytest.raises(WeightsError, match=r"quantised format a_newer_format, which needs a newer ComfyUI") as caught:
        load("newer")
    assert "0.19 reads fp8 with scales" in str(caught.value)
    known = f"this one knows {', '.join(sorted(FORMATS))}" if FORMATS else "this one knows none of them"
    assert known in str(caught.value)


@needs_formats
def test_weights_that_do_not_belong_to_it_are_named(models):
    name = sorted(ERRORS.keys() & FORMATS)[0]
    quantised = quantise(weights.read(models / "plain" / "transformer"), name)
    for what, change, message in (
        ("less", lambda tensors: tensors.pop("proj_out.weight"), r"1 missing \(proj_out\.weight\)"),
        ("more", lambda tensors: tensors.update({"other.weight": X}), r"1 left over \(other\.weight\)"),
        ("no scales", lambda tensors: tensors.pop(f"{LAYER}.weight_scale"), "quantised weights .* are not complete"),
        ("no weight", lambda tensors: tensors.pop(f"{LAYER}.weight"), rf"1 missing \({LAYER}\.weight\)"),
    ):
        tensors = dict(quantised)
        change(tensors)
        write(models, what, tensors)
        with pytest.raises(WeightsError, match=message):
            load(what)
    write(models, "twice", quantised)
    with pytest.raises(WeightsError, match="quantised already: weight_dtype fp8_e4m3fn"):
        load("twice", "fp8_e4m3fn")
