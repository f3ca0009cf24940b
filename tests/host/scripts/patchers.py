"""How ComfyUI holds what the pack loads, and what it asks of a model for training, hooks and a second card."""

import shutil
import sys
from pathlib import Path

import host

base, folder = Path(sys.argv[1]), Path(sys.argv[2])
host.start(base)
shutil.copytree(folder, base / "models" / "fantasyid" / "whole")

import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402
from comfy_extras.nodes_train import TrainLoraNode  # noqa: E402
from pack.fantasyid_core.dit.injection import Injection  # noqa: E402
from pack.nodes.host import compat, operators, resident  # noqa: E402
from pack.nodes.host.options import add_injection, injections_of, transformer_of  # noqa: E402
from pack.nodes.host.paths import BUNDLED  # noqa: E402
from pack.nodes.loading import FantasyIDLoadModel  # noqa: E402
from pack.nodes.text import FantasyIDLoadTextEncoder  # noqa: E402
from torch import nn  # noqa: E402

torch.set_grad_enabled(False)
found: dict = {}

# main.py replaces the class after it has imported its modules, and ours with them
own = "CoreModelPatcher" if hasattr(comfy.model_patcher, "CoreModelPatcher") else "ModelPatcher"
kind, made = getattr(comfy.model_patcher, own), []


def make(model: nn.Module, *args, **kwargs):
    made.append(type(model).__name__)
    return kind(model, *args, **kwargs)


setattr(comfy.model_patcher, own, make)
model, vae, encoder = FantasyIDLoadModel.run("whole", "default").args
[clip] = FantasyIDLoadTextEncoder.run("whole").args
files = folder / "face_model"
wanted = [
    (resident.deca_regressor, files / "deca_model.safetensors"),
    (resident.face_model, files / "generic_model.safetensors"),
    (resident.attribute_network, BUNDLED / "FantasyID-nano" / "judge"),
]
resident.on_device(wanted)
made_for_encoder = encoder.loaded()
setattr(comfy.model_patcher, own, kind)
found["made"] = made

# each can be loaded anew, whole, with weights of its own
found["loaded anew"] = {}
for name, patcher in {"model": model, "vae": vae.patcher, "clip": clip.patcher}.items():
    load, arguments = patcher.cached_patcher_init
    again = load(*arguments, disable_dynamic=True)
    pairs = zip(again.model.state_dict().values(), patcher.model.state_dict().values(), strict=True)
    same = all(torch.equal(a, b) for a, b in pairs)
    found["loaded anew"][name] = [same, again.model is not patcher.model, type(again).__name__]

applied = add_injection(model, Injection(torch.randn(20, 64)))
if hasattr(applied, "deepclone_multigpu"):
    clone = applied.deepclone_multigpu(new_load_device=torch.device("cpu"))
    [injection] = injections_of(clone)
    found["for a second card"] = [clone.model is not applied.model, injection is injections_of(applied)[0]]

# Train LoRA as the node is run, its other widgets at their defaults
config = transformer_of(model).config
inputs = {widget.id: [widget.default] for widget in TrainLoraNode.define_schema().inputs if hasattr(widget, "default")}
inputs |= {"steps": [2], "rank": [2], "training_dtype": ["fp32"], "lora_dtype": ["fp32"], "learning_rate": [1e-2]}
latents = [{"samples": torch.randn(1, 16, 3, config.sample_height, config.sample_width)} for _ in range(2)]
text = [[torch.randn(1, 226, config.text_embed_dim), {}]]
before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
trained = TrainLoraNode.execute(**inputs, model=[model], latents=latents, positive=[text]).args
lora = next(x for x in trained if isinstance(x, dict) and any(isinstance(t, torch.Tensor) for t in x.values()))
found["trained"] = any(bool(tensor.any()) for name, tensor in lora.items() if "up" in name or "lora_B" in name)
found["untouched by training"] = all(torch.equal(x, before[name]) for name, x in model.model.state_dict().items())
patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0)
found["patched by the trained"] = len(patched.patches) > 0

# dynamic VRAM lends weights and takes them back; and keeps a LoRA in a place of its own
norm = operators.Operators.LayerNorm(4)
norm.weight.data, norm.bias.data = torch.full((4,), 2.0), torch.full((4,), 3.0)
lent, asked = (norm.weight.clone(), norm.bias.clone()), []
cast, uncast = comfy.ops.cast_bias_weight, comfy.ops.uncast_bias_weight
comfy.ops.cast_bias_weight = lambda layer, *_, **options: asked.append(options.get("dtype")) or (*lent, "stream")
comfy.ops.uncast_bias_weight = lambda layer, weight, bias, stream: [x.zero_() for x in (weight, bias)]
norm._v = object()
found["norms outlive the loan"] = [float(x.mean()) for x in compat.cast_weights(norm, torch.ones(1, 4))]
linear = operators.Operators.Linear(4, 4)
linear.weight.data = linear.weight.data.to(torch.float8_e4m3fn)
asked.clear()
for patch in (None, lambda weight: weight):
    linear.weight_lowvram_function = patch
    operators.with_weights(linear, torch.device("cpu"), torch.bfloat16, True, lambda weight, bias: weight)
found["8 bits unless patched"] = [str(dtype) for dtype in asked]
comfy.ops.cast_bias_weight, comfy.ops.uncast_bias_weight = cast, uncast
host.report(**found)
