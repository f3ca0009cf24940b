"""The DiT as the host's MODEL, on stand-in weights: sampling, injection, LoRA, fp8, partial loading."""

import logging
import sys
from pathlib import Path
from typing import ClassVar

import host

folder = Path(sys.argv[1])
host.start(Path(sys.argv[2]))

import comfy.patcher_extension  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402
from pack.fantasyid_core.dit.injection import Injection, LayerAttention  # noqa: E402
from pack.fantasyid_core.dit.transformer import from_published  # noqa: E402
from pack.fantasyid_core.errors import IdentityError, SamplingError, WeightsError  # noqa: E402
from pack.fantasyid_core.fusion.checkpoint import split_published  # noqa: E402
from pack.fantasyid_core.io.weights import read, read_config  # noqa: E402
from pack.nodes.host.model import load_model  # noqa: E402
from pack.nodes.host.options import add_injection, transformer_of  # noqa: E402
from pack.nodes.host.sampler import ReleaseSampler  # noqa: E402
from pack.nodes.sampling import trailing_sigmas  # noqa: E402
from torch import Tensor, nn  # noqa: E402

torch.set_grad_enabled(False)
config = read_config(folder / "transformer")
size = config["sample_height"], config["sample_width"]
seed = torch.Generator().manual_seed(0)
NOISE = torch.randn(1, 16, 3, *size, generator=seed)
FIRST = torch.randn(1, 16, 1, *size, generator=seed)
TEXT, NEGATIVE = torch.randn(2, 1, 226, 32, generator=seed)
TOKENS = torch.randn(20, 64, generator=seed)
STEPS = 6
found: dict = {}


def load(weight_dtype: str = "default"):
    return load_model(config, split_published(read(folder / "transformer")), weight_dtype)


def sample(
    model, sampler=None, image: bool = True, noise: Tensor = NOISE, positive: Tensor = TEXT, scale: float = 6.0
) -> Tensor:
    extra = {"concat_latent_image": FIRST} if image else {}
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([[positive, dict(extra)]], [[NEGATIVE, dict(extra)]])
    guider.set_cfg(scale)
    sampler = sampler or comfy.samplers.sampler_object("ddim")
    return guider.sample(noise, torch.zeros_like(noise), sampler, trailing_sigmas(model, STEPS), seed=0)


class Warnings(logging.Handler):
    """Keeps what the pack says."""

    said: ClassVar[list[str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said += [record.getMessage()] * record.getMessage().startswith("FantasyID: This model knows")


def difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def cosine(a: Tensor, b: Tensor) -> float:
    return nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0).item()


logging.getLogger().addHandler(Warnings())
model = load()
plain = sample(model)
applied = add_injection(model, Injection(TOKENS))
identity = sample(applied)

# one prediction through the host equals one of the core
core = from_published(config, split_published(read(folder / "transformer"))).float()
x = torch.cat([NOISE, torch.nn.functional.pad(FIRST, (0, 0, 0, 0, 0, 2))], 1)
theirs = core(x.transpose(1, 2), TEXT, torch.tensor([500.0]), rotary=core.rotary_embedding(3, *size, "cpu"))
ours = transformer_of(model)(x, torch.tensor([500.0]), TEXT)
found["prediction difference"] = difference(ours.transpose(1, 2), theirs)
other = transformer_of(model)(x[:, :, :2, :8], torch.tensor([500.0]), TEXT)
found["of another size"] = list(other.shape) if other.isfinite().all() else "not finite"

# the released loop and the host's own sampler
released = sample(applied, ReleaseSampler("ddim", STEPS, torch.Generator()))
found["ddim cosine"] = cosine(released, identity)
dpm = [sample(applied, ReleaseSampler("dpm", STEPS, torch.Generator().manual_seed(5))) for _ in range(2)]
found["dpm repeats"] = torch.equal(*dpm)
found["image condition acts"] = difference(sample(model, image=False), plain)

found["warnings"] = list(Warnings.said)
if not config["use_learned_positional_embeddings"]:
    sample(model, image=False, noise=NOISE[..., :8, :8])
    found["warnings of another size"] = Warnings.said

# injection: shared weights, isolated clones, keys and values once a run
found["identity acts"] = difference(identity, plain)
found["shares weights"] = applied.model is model.model
found["plain untouched"] = torch.equal(sample(model), plain)
found["strength 0"] = difference(sample(add_injection(model, Injection(TOKENS, 0.0))), plain)
found["second half only"] = difference(sample(add_injection(model, Injection(TOKENS, start=0.5))), plain)
found["after the last step"] = difference(sample(add_injection(model, Injection(TOKENS, start=0.99))), plain)
calls = []
original = LayerAttention.keys_values
LayerAttention.keys_values = lambda self, tokens: calls.append(1) or original(self, tokens)
sample(applied)
LayerAttention.keys_values = original
found["keys and values computed"] = len(calls)
both = add_injection(applied, Injection(TOKENS.flip(0)))
found["two identities"] = difference(sample(both), identity)

# an identity that guidance leads to: one prediction, put together by hand from what either branch predicts alone
once = comfy.samplers.KSAMPLER(lambda model, x, sigmas, extra_args, **_: model(x, sigmas[:1], **extra_args))
with_it, without = sample(applied, once, False, scale=1.0), sample(model, once, False, positive=NEGATIVE, scale=1.0)
guided = add_injection(model, Injection(TOKENS, guided=True))
found["guided difference"] = difference(sample(guided, once, False), without + 6 * (with_it - without))
found["guided without guidance"] = difference(sample(guided, once, False, scale=1.0), with_it)
found["guided acts"] = difference(sample(guided, once, False), sample(applied, once, False))

# LoRA under the names of PEFT, of the host and of kohya; on an injection layer too
for name, prefix, layer in (
    ("peft", "transformer.", "transformer_blocks.0.attn1.to_q"),
    ("host", "diffusion_model.", "transformer_blocks.1.ff.net.2"),
    ("injection", "transformer.", "layer_attention.0.to_kv"),
):
    weight = transformer_of(model).get_submodule(layer).weight
    up, down = 0.5 * torch.randn(weight.shape[0], 2), torch.randn(2, weight.shape[1])
    lora = {f"{prefix}{layer}.lora_A.weight": down, f"{prefix}{layer}.lora_B.weight": up}
    patched, _ = comfy.sd.load_lora_for_models(applied, None, lora, 0.7, 0)
    with_lora = sample(patched)
    by_hand = load()
    transformer_of(by_hand).get_submodule(layer).weight.data += 0.7 * up @ down
    found[f"lora {name}"] = difference(with_lora, sample(add_injection(by_hand, Injection(TOKENS))))
    found[f"lora {name} acts"] = difference(with_lora, identity)
found["unpatched again"] = difference(sample(applied), identity)

# fp8 storage equals the dequantised weights
fp8 = load("fp8_e4m3fn")
blocks = [m for m in transformer_of(fp8).transformer_blocks.modules() if isinstance(m, nn.Linear)]
found["fp8 stored"] = all(m.weight.dtype == torch.float8_e4m3fn for m in blocks)
dequantised = load()
for ours, theirs in zip(transformer_of(fp8).parameters(), transformer_of(dequantised).parameters(), strict=True):
    theirs.data = ours.data.to(torch.float32)
found["fp8 difference"] = difference(sample(fp8), sample(dequantised))

for name in ("bf16", "fp16"):
    stored = load(name)
    found[f"{name} stored"] = str(transformer_of(stored).proj_out.weight.dtype)
    found[f"{name} difference"] = difference(sample(stored), plain)

# the host keeps a part of the weights elsewhere and casts them when they are used
partial = add_injection(load(), Injection(TOKENS))
partial.load(torch.device("cpu"), lowvram_model_memory=200_000)
found["partially loaded"] = partial.model.model_lowvram
found["partial difference"] = difference(sample(partial), identity)

# patches of other packs
seen = []
patched = applied.clone()
patched.set_model_patch(lambda args: seen.append(args["block_index"]) or args, "double_block")
patched.set_model_patch_replace(
    lambda args, extra: seen.append("replaced") or extra["original_block"](args), "dit", "double_block", 1
)
patched.add_wrapper(
    comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, lambda run, *a, **k: seen.append("wrapped") or run(*a, **k)
)
found["patched difference"] = difference(sample(patched), identity)
found["patches seen"] = [seen.count(what) for what in (0, 3, "replaced", "wrapped")]

# errors
uneven = {"latent_rgb_factors": [[0.1, 0.2, 0.3], [0.1]]}
for name, kind, action in (
    ("wrong identity", IdentityError, lambda: add_injection(model, Injection(TOKENS[:, :10]))),
    ("wrong size", SamplingError, lambda: transformer_of(model).check_sizes(3, 8, 8)),
    (
        "wrong colours",
        WeightsError,
        lambda: load_model(config, split_published(read(folder / "transformer")), vae_config=uneven),
    ),
    (
        "wrong config",
        WeightsError,
        lambda: load_model({**config, "num_layers": 5}, split_published(read(folder / "transformer"))),
    ),
):
    try:
        action()
        found[name] = "accepted"
    except kind as error:
        found[name] = str(error)
previews = model.model.latent_format.latent_rgb_factors
found["preview factors"] = [len(previews), len(previews[0])]
colours = {"scaling_factor": 1.2, "latent_rgb_factors": [[0.1, 0.2, 0.3]] * 16, "latent_rgb_factors_bias": [0, 0, 1]}
own = load_model(config, split_published(read(folder / "transformer")), vae_config=colours).model.latent_format
found["own colours"] = [own.scale_factor, own.latent_rgb_factors == colours["latent_rgb_factors"]]
found["colours of others"] = model.model.latent_format.scale_factor
host.report(**found)
