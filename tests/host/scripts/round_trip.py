"""What ComfyUI's own nodes save of our MODEL and VAE, loaded again; LoRAs as others name them; files in 8 bits."""

import shutil
import sys
from pathlib import Path

import host

base, folder = Path(sys.argv[1]), Path(sys.argv[2])
host.start(base)
models = base / "models" / "fantasyid"
shutil.copytree(folder, models / "whole")

import folder_paths  # noqa: E402
import torch  # noqa: E402
from comfy_extras.nodes_model_merging import CheckpointSave, ModelSave, VAESave  # noqa: E402
from pack.fantasyid_core.io import weights  # noqa: E402
from pack.nodes.host.options import transformer_of  # noqa: E402
from pack.nodes.loading import FantasyIDLoadModel  # noqa: E402
from pack.nodes.text import FantasyIDLoadTextEncoder  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import Tensor  # noqa: E402

import nodes  # noqa: E402

torch.set_grad_enabled(False)
seed = torch.Generator().manual_seed(0)
LAYER = "transformer_blocks.0.attn1.to_q"
output = Path(folder_paths.get_output_directory())
loras = base / "models" / "loras"
loras.mkdir(parents=True, exist_ok=True)
found: dict = {}


def load(name: str, weight_dtype: str = "default", **more):
    return FantasyIDLoadModel.run(name, weight_dtype, **more).args


def outcome(action) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def prediction(model) -> Tensor:
    """One evaluation by ComfyUI, with what a sampler would load, of the same input for every model of one size."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    config = transformer_of(model).config
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(1, 16, 3, config.sample_height, config.sample_width, generator=drawn)
    context = torch.randn(1, 226, config.text_embed_dim, generator=drawn)
    image = torch.zeros(1, config.in_channels - 16, *x.shape[2:]) if config.in_channels > 16 else None
    options = model.model_options["transformer_options"]
    sigma = torch.tensor([5.0])
    return model.model.apply_model(x, sigma, c_concat=image, c_crossattn=context, transformer_options=options)


def difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def with_lora(model, names: dict[str, str]):
    """The MODEL of ComfyUI's LoraLoaderModelOnly, for a LoRA of one layer under these names of its two matrices."""
    tensors = {names["down"]: DOWN, names["up"]: UP}
    if "alpha" in names:
        tensors[names["alpha"]] = torch.tensor(1.0)
    save_file(tensors, loras / "one.safetensors")
    folder_paths.filename_list_cache.clear()
    [patched] = nodes.LoraLoaderModelOnly().load_lora_model_only(model, "one.safetensors", 0.7)
    return patched


model, vae, encoder = load("whole")
plain = prediction(model)
width = transformer_of(model).get_submodule(LAYER).weight.shape[1]
DOWN, UP = torch.randn(2, width, generator=seed), 0.5 * torch.randn(width, 2, generator=seed)
peft = {"down": f"transformer.{LAYER}.lora_A.weight", "up": f"transformer.{LAYER}.lora_B.weight"}
patched = with_lora(model, peft)
expected = prediction(patched)
found["lora acts"] = difference(expected, plain)

# what ComfyUI saves
ModelSave().save(patched, "saved/model")
[clip] = FantasyIDLoadTextEncoder.run("whole").args
CheckpointSave().save(patched, clip, vae, "saved/checkpoint")
VAESave().save(vae, "saved/vae")
for name in ("model", "checkpoint", "vae"):
    shutil.copy(output / "saved" / f"{name}_00001_.safetensors", models / f"{name}.safetensors")
(base / "models" / "vae").mkdir(parents=True, exist_ok=True)
shutil.move(models / "vae.safetensors", base / "models" / "vae" / "vae.safetensors")
found["without a vae"] = outcome(lambda: load("model.safetensors"))
pixels = torch.rand(5, 32, 48, 3, generator=seed)
encoded = vae.encode(pixels)
for name, more in {
    "model": {"parts_from": "whole"},
    "checkpoint": {},
    "model with a vae file": {"vae_name": "vae.safetensors"},
}.items():
    again, its_vae, its_encoder = load(f"{name.split()[0]}.safetensors", **more)
    found[name] = {
        "difference": difference(prediction(again), expected),
        "configuration": transformer_of(again).config == transformer_of(model).config
        and again.model.latent_format.scale_factor == model.model.latent_format.scale_factor,
        "vae": difference(its_vae.encode(pixels), encoded),
        "encoder": outcome(lambda encoder=its_encoder: encoder.loaded()),
    }
again, _, its_encoder = load("model.safetensors", parts_from="whole")
same = [
    torch.equal(a, b) for a, b in zip(*(e.loaded().model.parameters() for e in (its_encoder, encoder)), strict=True)
]
found["encoder of the folder"] = all(same)

# the spelling of VideoX-Fun, which ComfyUI knows of Wan alone
spelt = "lora_unet__" + LAYER.replace(".", "_")
names = {"down": f"{spelt}.lora_down.weight", "up": f"{spelt}.lora_up.weight"}
found["videox-fun"] = difference(prediction(with_lora(model, names)), expected)
halved = {**peft, "alpha": f"transformer.{LAYER}.alpha"}
found["videox-fun with alpha"] = difference(
    prediction(with_lora(model, {**names, "alpha": f"{spelt}.alpha"})), prediction(with_lora(model, halved))
)
strange = {"down": "double_blocks.0.lora_A.weight", "up": "double_blocks.0.lora_B.weight"}
found["no name fits"] = outcome(lambda: with_lora(model, strange))
found["no name fits a clone's clone"] = outcome(lambda: with_lora(model.clone().clone(), strange))
found["untouched"] = difference(prediction(model), plain)

# every tensor of the file in 8 bits
tensors = weights.read(models / "whole" / "transformer")
config = weights.read_config(models / "whole" / "transformer")
for name, dtype in (("e4m3fn", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)):
    save_file({key: x.to(dtype) for key, x in tensors.items()}, models / f"{name}.safetensors")
    wide = {key: x.to(dtype).to(x.dtype) for key, x in tensors.items()}
    save_file(wide, models / "wide.safetensors")
    reference = prediction(load("wide.safetensors", "fp32", parts_from="whole")[0])
    found[name] = {}
    for weight_dtype in ("default", "bf16", "fp16", "fp32", "fp8_e4m3fn"):
        made, _, _ = load(f"{name}.safetensors", weight_dtype, parts_from="whole")
        block = transformer_of(made).transformer_blocks[0]
        kinds = [str(x.dtype).split(".")[1] for x in (block.attn1.to_q.weight, block.norm1.norm.weight)]
        found[name][weight_dtype] = [*kinds, difference(prediction(made), reference)]
scales = {f"{LAYER}.scale_weight": torch.ones(())}
save_file(tensors | scales, models / "scaled.safetensors")
found["scaled"] = outcome(lambda: load("scaled.safetensors", parts_from="whole"))
host.report(**found)
