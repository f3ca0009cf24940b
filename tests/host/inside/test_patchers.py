"""How ComfyUI holds what the pack loads, and what it asks of a model for training, hooks and a second card."""

import shutil
from types import SimpleNamespace

import comfy.model_patcher
import comfy.ops
import comfy.sd
import pytest
import torch
from comfy_extras.nodes_train import TrainLoraNode
from pack.fantasyid_core.dit.injection import Injection
from pack.nodes.host import compat, resident
from pack.nodes.host.operators import Operators, with_weights
from pack.nodes.host.options import add_injection, injections_of, transformer_of
from pack.nodes.host.paths import BUNDLED
from pack.nodes.loading import FantasyIDLoadModel
from pack.nodes.text import FantasyIDLoadTextEncoder
from torch import nn

SEED = torch.Generator().manual_seed(0)
# main.py replaces the class after it has imported its modules, and ours with them
OWN = "CoreModelPatcher" if hasattr(comfy.model_patcher, "CoreModelPatcher") else "ModelPatcher"


@pytest.fixture(scope="module")
def loaded(base, standin) -> SimpleNamespace:
    """What the loaders make of a model, and `held`: the classes of all that patchers were made for."""
    shutil.copytree(standin, base / "models" / "fantasyid" / "whole")
    kind, held = getattr(comfy.model_patcher, OWN), []

    def make(model: nn.Module, *args, **kwargs):
        held.append(type(model).__name__)
        return kind(model, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.model_patcher, OWN, make)
        model, vae, encoder = FantasyIDLoadModel.run("whole", "default").args
        [clip] = FantasyIDLoadTextEncoder.run("whole").args
        files = standin / "face_model"
        networks = [
            (resident.deca_regressor, files / "deca_model.safetensors"),
            (resident.face_model, files / "generic_model.safetensors"),
            (resident.attribute_network, BUNDLED / "FantasyID-nano" / "judge"),
        ]
        resident.on_device(networks)
        encoder.loaded()
    return SimpleNamespace(model=model, vae=vae.patcher, clip=clip.patcher, held=held)


def test_every_patcher_is_of_the_class_that_comfyui_uses_at_that_time(loaded):
    ours = {"FantasyIDModel", "_FirstStage", "Regressor", "FaceModel", "AttributeRegressor", "IdentityEncoder"}
    assert ours <= set(loaded.held)
    assert len(loaded.held) == len(ours) + 1, "and the text encoder, made by ComfyUI's CLIP"


@pytest.mark.parametrize("part", ["model", "vae", "clip"])
def test_a_model_can_be_loaded_anew_whole_with_weights_of_its_own(loaded, part):
    patcher = getattr(loaded, part)
    load, arguments = patcher.cached_patcher_init
    again = load(*arguments, disable_dynamic=True)
    for ours, theirs in zip(again.model.state_dict().values(), patcher.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert again.model is not patcher.model
    assert type(again) is comfy.model_patcher.ModelPatcher


@pytest.mark.skipif(
    not hasattr(comfy.model_patcher.ModelPatcher, "deepclone_multigpu"), reason="this ComfyUI uses one card"
)
def test_a_copy_for_a_second_card_follows_the_same_identity(loaded):
    applied = add_injection(loaded.model, Injection(torch.randn(20, 64, generator=SEED)))
    clone = applied.deepclone_multigpu(new_load_device=torch.device("cpu"))
    assert clone.model is not applied.model
    [injection] = injections_of(clone)
    assert injection is injections_of(applied)[0]


def test_comfyui_s_own_node_trains_a_lora(loaded):
    """As the node is run, its other widgets at their defaults."""
    model, config = loaded.model, transformer_of(loaded.model).config
    widgets = TrainLoraNode.define_schema().inputs
    inputs = {widget.id: [widget.default] for widget in widgets if hasattr(widget, "default")}
    inputs |= {"steps": [2], "rank": [2], "training_dtype": ["fp32"], "lora_dtype": ["fp32"], "learning_rate": [1e-2]}
    shape = 1, 16, 3, config.sample_height, config.sample_width
    latents = [{"samples": torch.randn(shape, generator=SEED)} for _ in range(2)]
    text = [[torch.randn(1, 226, config.text_embed_dim, generator=SEED), {}]]
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}

    trained = TrainLoraNode.execute(**inputs, model=[model], latents=latents, positive=[text]).args
    lora = next(x for x in trained if isinstance(x, dict) and any(isinstance(t, torch.Tensor) for t in x.values()))
    assert any(tensor.any() for name, tensor in lora.items() if "up" in name or "lora_B" in name)
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0)
    assert patched.patches


@pytest.fixture
def lending(monkeypatch) -> list[torch.dtype]:
    """ComfyUI lends a layer's weights and takes them back, as with dynamic VRAM; the types that are wanted."""
    dtypes = []

    def lend(layer: nn.Module, *_, **options) -> tuple:
        dtypes.append(options.get("dtype"))
        return layer.weight.detach().clone(), layer.bias.detach().clone(), "stream"

    def take_back(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor, stream: str) -> None:
        weight.zero_()
        bias.zero_()

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", lend)
    monkeypatch.setattr(comfy.ops, "uncast_bias_weight", take_back)
    return dtypes


def test_weights_that_dynamic_vram_lends_are_copied_where_they_are_kept(lending):
    norm = Operators.LayerNorm(4)
    norm.weight.data, norm.bias.data = torch.full((4,), 2.0), torch.full((4,), 3.0)
    norm._v = object()
    assert [x.tolist() for x in compat.cast_weights(norm, torch.ones(1, 4))] == [[2.0] * 4, [3.0] * 4]


def test_weights_in_8_bits_are_multiplied_as_such_unless_a_lora_changes_them(lending):
    linear = Operators.Linear(4, 4)
    linear.weight.data = torch.ones(4, 4, dtype=torch.float8_e4m3fn)
    for patch in (None, lambda weight: weight):
        linear.weight_lowvram_function = patch
        with_weights(linear, torch.device("cpu"), torch.bfloat16, True, lambda weight, bias: weight)
    assert lending == [torch.float8_e4m3fn, torch.bfloat16]
