"""MODEL and VAE through ComfyUI's own nodes for saving and LoRAs, files in 8 bits: what is loaded again."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import folder_paths
import pytest
import torch
from comfy_extras.nodes_model_merging import CheckpointSave, ModelSave, VAESave
from pack.fantasyid_core.errors import FantasyIDError, WeightsError
from pack.fantasyid_core.io import weights
from pack.nodes.host.options import transformer_of
from pack.nodes.loading import FantasyIDLoadModel
from pack.nodes.text import FantasyIDLoadTextEncoder
from pack.tests.support.in_comfyui import difference
from safetensors.torch import save_file
from torch import Tensor

import nodes

LAYER = "transformer_blocks.0.attn1.to_q"
PEFT = {"down": f"transformer.{LAYER}.lora_A.weight", "up": f"transformer.{LAYER}.lora_B.weight"}
SPELT = "lora_unet__" + LAYER.replace(".", "_")  # of VideoX-Fun, which ComfyUI knows of Wan alone
VIDEOX_FUN = {"down": f"{SPELT}.lora_down.weight", "up": f"{SPELT}.lora_up.weight"}
STRANGE = {"down": "double_blocks.0.lora_A.weight", "up": "double_blocks.0.lora_B.weight"}
PIXELS = torch.rand(5, 32, 48, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["standin", "standin_nano"])
def name(request, base) -> str:
    """A model's folder: the published one, whose sizes its tensors tell, and nano's layout, where they do not."""
    shutil.copytree(request.getfixturevalue(request.param), base / "models" / "fantasyid" / request.param)
    return request.param


@pytest.fixture(scope="module")
def models(base) -> Path:
    return base / "models" / "fantasyid"


def load(name: str, weight_dtype: str = "default", **more) -> tuple:
    """MODEL, VAE and identity encoder."""
    return FantasyIDLoadModel.run(name, weight_dtype, **more).args


@pytest.fixture(scope="module")
def loaded(name) -> SimpleNamespace:
    model, vae, encoder = load(name)
    return SimpleNamespace(model=model, vae=vae, encoder=encoder, prediction=prediction(model))


def prediction(model) -> Tensor:
    """One evaluation by ComfyUI, with what a sampler would load, of the same input for every model of one size."""
    comfy.model_management.load_models_gpu([model])
    config = transformer_of(model).config
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(1, 16, 3, config.sample_height, config.sample_width, generator=drawn)
    context = torch.randn(1, 226, config.text_embed_dim, generator=drawn)
    image = torch.zeros(1, config.in_channels - 16, *x.shape[2:]) if config.in_channels > 16 else None
    options = model.model_options["transformer_options"]
    sigma = torch.tensor([5.0])
    return model.model.apply_model(x, sigma, c_concat=image, c_crossattn=context, transformer_options=options)


def with_lora(base: Path, model, names: dict[str, str]):
    """The MODEL of ComfyUI's LoraLoaderModelOnly, for a LoRA of one layer under these names of its tensors."""
    width = transformer_of(model).get_submodule(LAYER).weight.shape[1]
    generator = torch.Generator().manual_seed(2)
    down, up = torch.randn(2, width, generator=generator), 0.5 * torch.randn(width, 2, generator=generator)
    tensors = {"down": down, "up": up, "alpha": torch.tensor(1.0)}
    (base / "models" / "loras").mkdir(parents=True, exist_ok=True)
    save_file({key: tensors[kind] for kind, key in names.items()}, base / "models" / "loras" / "one.safetensors")
    folder_paths.filename_list_cache.clear()
    [patched] = nodes.LoraLoaderModelOnly().load_lora_model_only(model, "one.safetensors", 0.7)
    return patched


@pytest.fixture(scope="module")
def patched(base, loaded):
    return with_lora(base, loaded.model, PEFT)


@pytest.fixture(scope="module")
def expected(patched) -> Tensor:
    """What the model with the LoRA predicts."""
    return prediction(patched)


@pytest.fixture(scope="module")
def saved(base, models, name, loaded, patched) -> SimpleNamespace:
    """Names of what ComfyUI saved of the model with the LoRA, moved to where it is loaded from."""
    [clip] = FantasyIDLoadTextEncoder.run(name).args
    ModelSave().save(patched, f"{name}/model")
    CheckpointSave().save(patched, clip, loaded.vae, f"{name}/checkpoint")
    VAESave().save(loaded.vae, f"{name}/vae")
    (base / "models" / "vae").mkdir(parents=True, exist_ok=True)
    names = {}
    for kind, folder in {"model": models, "checkpoint": models, "vae": base / "models" / "vae"}.items():
        names[kind] = f"{name}-{kind}.safetensors"
        shutil.move(base / "output" / name / f"{kind}_00001_.safetensors", folder / names[kind])
    return SimpleNamespace(**names)


@pytest.fixture(params=["model", "checkpoint", "model with a vae file"])
def again(request, name, saved) -> tuple:
    """MODEL, VAE and identity encoder of what was saved."""
    choices = {
        "model": (saved.model, {"parts_from": name}),
        "checkpoint": (saved.checkpoint, {}),
        "model with a vae file": (saved.model, {"vae_name": saved.vae}),
    }
    file, more = choices[request.param]
    return load(file, **more)


def test_what_comfyui_saves_of_a_model_with_a_lora_loads_again(loaded, expected, again):
    model, vae, _ = again
    assert difference(expected, loaded.prediction) > 0.01, "the LoRA acts"
    assert difference(prediction(model), expected) < 1e-5
    assert transformer_of(model).config == transformer_of(loaded.model).config
    assert model.model.latent_format.scale_factor == loaded.model.model.latent_format.scale_factor
    assert difference(vae.encode(PIXELS), loaded.vae.encode(PIXELS)) == 0


def test_the_identity_encoder_comes_from_the_folder_chosen_or_the_error_says_so(name, loaded, saved):
    encoders = load(saved.model, parts_from=name)[2], loaded.encoder
    for ours, theirs in zip(*(encoder.loaded().model.parameters() for encoder in encoders), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(FantasyIDError, match="parts_from of FantasyID Load Model"):
        load(saved.checkpoint)[2].loaded()
    with pytest.raises(FantasyIDError, match=r"(?s)parts_from.*comes without a VAE"):
        load(saved.model)


def test_a_lora_that_videox_fun_named_acts_as_the_same_under_other_names(base, loaded, expected):
    assert difference(prediction(with_lora(base, loaded.model, VIDEOX_FUN)), expected) == 0
    alpha = {"alpha": f"transformer.{LAYER}.alpha"}
    halved = prediction(with_lora(base, loaded.model, PEFT | alpha))
    theirs = VIDEOX_FUN | {"alpha": f"{SPELT}.alpha"}
    assert difference(prediction(with_lora(base, loaded.model, theirs)), halved) == 0


def test_a_lora_of_which_nothing_fits_is_an_error(base, loaded):
    for model in (loaded.model, loaded.model.clone().clone()):
        with pytest.raises(FantasyIDError, match="Not one tensor of this LoRA fits"):
            with_lora(base, model, STRANGE)
    assert difference(prediction(loaded.model), loaded.prediction) == 0


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_a_file_all_in_8_bits_is_stored_as_asked(models, name, dtype):
    """Where 8 bits stay, they stay in the blocks' linear layers alone; the values are the file's."""
    tensors = weights.read(models / name / "transformer")
    save_file({key: x.to(dtype) for key, x in tensors.items()}, models / "narrow.safetensors")
    save_file({key: x.to(dtype).to(x.dtype) for key, x in tensors.items()}, models / "wide.safetensors")
    reference = prediction(load("wide.safetensors", "fp32", parts_from=name)[0])
    for weight_dtype, stored, most in (
        ("default", dtype, 0.02),
        ("bf16", torch.bfloat16, None),
        ("fp16", torch.float16, None),
        ("fp32", torch.float32, 0),
        ("fp8_e4m3fn", torch.float8_e4m3fn, None),
    ):
        model = load("narrow.safetensors", weight_dtype, parts_from=name)[0]
        block = transformer_of(model).transformer_blocks[0]
        linear, norm = block.attn1.to_q.weight.dtype, block.norm1.norm.weight.dtype
        assert linear == stored
        assert norm.itemsize > 1 if stored.itemsize == 1 else norm == stored
        if most is not None:
            assert difference(prediction(model), reference) <= most


def test_8_bits_with_scales_are_refused_when_the_file_is_loaded(models, name):
    tensors = weights.read(models / name / "transformer") | {f"{LAYER}.scale_weight": torch.ones(())}
    save_file(tensors, models / "scaled.safetensors")
    with pytest.raises(WeightsError, match="plain fp8"):
        load("scaled.safetensors", parts_from=name)
