"""What ComfyUI and its nodes put into `transformer_options` reaches the DiT: on stand-in weights, in one process."""

import sys
from pathlib import Path

import host

folder = Path(sys.argv[1])
host.start(Path(sys.argv[2]))

import comfy.hooks  # noqa: E402
import comfy.ldm.modules.attention  # noqa: E402
import comfy.samplers  # noqa: E402
import node_helpers  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from comfy_extras import nodes_easycache, nodes_hypertile, nodes_model_advanced, nodes_rope, nodes_tomesd  # noqa: E402
from pack.fantasyid_core.dit.injection import Injection  # noqa: E402
from pack.fantasyid_core.dit.step_cache import CacheSettings  # noqa: E402
from pack.fantasyid_core.errors import SamplingError  # noqa: E402
from pack.fantasyid_core.fusion.checkpoint import split_published  # noqa: E402
from pack.fantasyid_core.io.weights import read, read_config  # noqa: E402
from pack.nodes.host import attention  # noqa: E402
from pack.nodes.host.model import load_model  # noqa: E402
from pack.nodes.host.options import add_injection, set_fp8_products, set_step_cache, transformer_of  # noqa: E402
from pack.nodes.host.run import KEY  # noqa: E402
from pack.nodes.sampling import trailing_sigmas  # noqa: E402
from torch import Tensor  # noqa: E402

torch.set_grad_enabled(False)
config = read_config(folder / "transformer")
seed = torch.Generator().manual_seed(0)
FRAMES, HEIGHT, WIDTH = 2, config["sample_height"], config["sample_width"]
NOISE = torch.randn(1, 16, FRAMES, HEIGHT, WIDTH, generator=seed)
TEXT, NEGATIVE = torch.randn(2, 1, 226, 32, generator=seed)
TOKENS = torch.randn(20, 64, generator=seed)
VIDEO = FRAMES * HEIGHT * WIDTH // 4  # patches of 2 × 2
STEPS, BLOCKS = 3, config["num_layers"]
found: dict = {"video tokens": VIDEO, "blocks": BLOCKS}


def load():
    return load_model(config, split_published(read(folder / "transformer")))


def sample(model, positive: list | None = None, sampler: str = "ddim") -> Tensor:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive or [[TEXT, {}]], [[NEGATIVE, {}]])
    guider.set_cfg(6.0)
    sampler = comfy.samplers.sampler_object(sampler)
    return guider.sample(
        NOISE, torch.zeros_like(NOISE), sampler, trailing_sigmas(model, STEPS), seed=0, disable_pbar=True
    )


def difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def refusal(action) -> str:
    try:
        action()
    except SamplingError as error:
        return str(error)
    return "accepted"


def patched(patch, name: str):
    model = applied.clone()
    model.set_model_patch(patch, name)
    return model


plain = load()
applied = add_injection(plain, Injection(TOKENS))
before = {name: value for name, value in vars(transformer_of(plain)).items() if not name.startswith("__")}
exact = sample(applied)

# one key of ours, and nothing of a run is left on what all clones share
switched = set_step_cache(set_fp8_products(applied, False), CacheSettings())
options = switched.model_options["transformer_options"]
found["keys of ours"] = [key for key in options if key.startswith(KEY)]
found["settings"] = [len(options[KEY].injections), options[KEY].fp8, options[KEY].step_cache == CacheSettings()]
found["clones share"] = switched.clone().model_options["transformer_options"][KEY] is options[KEY]
found["shared state untouched"] = before == dict(vars(transformer_of(plain)))
found["no run left"] = applied.model_options["transformer_options"][KEY].run is None

# a node's own attention (Patch Sage Attention): for every block and every injection layer
calls = []


def own_attention(function, q, k, v, heads, *args, **kwargs):
    calls.append((tuple(q.shape), k.shape[2], heads, kwargs["skip_reshape"], "sigmas" in kwargs["transformer_options"]))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


overridden = applied.clone()
overridden.model_options["transformer_options"]["optimized_attention_override"] = own_attention
found["override difference"] = difference(sample(overridden), exact)
found["override calls"] = len(calls)
found["override, a step"] = calls[: len(calls) // STEPS]
found["heads"] = [config["num_attention_heads"], config["attention_head_dim"]]
nothing = applied.clone()
nothing.model_options["transformer_options"]["optimized_attention_override"] = lambda function, q, k, v, *a, **b: (
    torch.zeros_like(q).transpose(1, 2).flatten(2)
)
found["override acts"] = difference(sample(nothing), exact)
if hasattr(nodes_model_advanced, "ModelAttentionBackend"):
    asked = []
    pytorch = comfy.ldm.modules.attention.REGISTERED_ATTENTION_FUNCTIONS["pytorch"]
    comfy.ldm.modules.attention.REGISTERED_ATTENTION_FUNCTIONS["pytorch"] = lambda *a, **b: (
        asked.append(1) or pytorch(*a, **b)
    )
    by_node = nodes_model_advanced.ModelAttentionBackend().patch(applied, "pytorch attention")[0]
    found["ModelAttentionBackend"] = [difference(sample(by_node), exact), len(asked)]
    comfy.ldm.modules.attention.REGISTERED_ATTENTION_FUNCTIONS["pytorch"] = pytorch

# what ComfyUI was started with (sage, flash, split): the same, looked up when it is needed
original, calls = comfy.ldm.modules.attention.optimized_attention, []
comfy.ldm.modules.attention.optimized_attention = lambda *a, **b: calls.append(1) or original(*a, **b)
found["started with another"] = [difference(sample(applied), exact), len(calls)]

# only where that is PyTorch's, the fastest of its kernels is asked for
comfy.ldm.modules.attention.optimized_attention = comfy.ldm.modules.attention.attention_pytorch
shapes, orders, plain_attention = [], {}, attention.scaled_dot_product
attention._has_kernels = lambda device: True
attention.fastest_backend = lambda shape, dtype, device: (
    shapes.append([*shape, str(dtype), device.type]) or torch.nn.attention.SDPBackend.MATH
)


def ordered_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    orders.setdefault("blocks" if k.shape[2] > len(TOKENS) else "injections", []).append(first_backend())
    return plain_attention(q, k, v)


def first_backend() -> int:
    """Which kernel PyTorch's attention would try first."""
    return int(torch._C._get_sdp_priority_order()[0])


attention.scaled_dot_product = ordered_attention
found["fastest"] = [difference(sample(applied), exact), shapes[0]]
found["asked for"] = {
    name: [len(first), set(first) == {int(torch.nn.attention.SDPBackend.MATH.value)}] for name, first in orders.items()
}
found["order afterwards"] = first_backend() == orders["injections"][0]
shapes.clear()
sample(overridden)
found["measured under an override"] = len(shapes)
with torch.enable_grad():
    attention.attention_for({}, (1, 2, 4096, 64), torch.float32, torch.device("cpu"))
found["measured in training"] = len(shapes)
comfy.ldm.modules.attention.optimized_attention = original
attention.attention_for({}, (1, 2, 4096, 64), torch.float32, torch.device("cpu"))
found["measured where another was chosen"] = len(shapes)
attention._has_kernels, attention.scaled_dot_product = (lambda device: False), plain_attention

# patches around the attention inside a block, as ComfyUI's Flux calls them
doubled = load()
for block in transformer_of(doubled).transformer_blocks:
    block.attn1.to_out[0].weight.data *= 2
doubled = sample(add_injection(doubled, Injection(TOKENS)))
given = []


def output_patch(out: Tensor, extra_options: dict) -> Tensor:
    names = ("block_index", "total_blocks", "block_type", "img_slice", "cond_or_uncond")
    given.append([list(out.shape[1:]), *(extra_options[name] for name in names)])
    return 2 * out


found["attn1_output_patch"] = difference(sample(patched(output_patch, "attn1_output_patch")), doubled)
found["given to attn1_output_patch"] = given[:BLOCKS]


def input_patch(q: Tensor, k: Tensor, v: Tensor, pe, attn_mask, extra_options: dict) -> dict:
    return {"q": q, "k": k, "v": 2 * v, "pe": pe, "attn_mask": attn_mask}


found["attn1_patch"] = difference(sample(patched(input_patch, "attn1_patch")), doubled)
masking = patched(lambda q, k, v, pe, attn_mask, extra_options: {"attn_mask": q[0, 0]}, "attn1_patch")
found["masking"] = refusal(lambda: sample(masking))
tile = nodes_hypertile.HyperTile.execute(applied, 256, 2, 0, False)[0]
found["HyperTile"] = refusal(lambda: sample(tile))
merged = nodes_tomesd.TomePatchModel.execute(applied, 0.3).args[0]
found["TomePatchModel"] = refusal(lambda: sample(merged))
try:
    from comfy_extras.nodes_nag import NAGuidance
except ImportError:
    pass
else:
    found["NAGuidance acts"] = difference(sample(NAGuidance.execute(applied, 5.0, 0.5, 1.5).args[0]), exact)
    # at scale 1 the video's tokens of both branches attend alike: those of the prompt
    same = []
    alike = NAGuidance.execute(applied, 1.0, 1.0, 1.5).args[0]
    alike.set_model_patch(
        lambda out, _: same.append(difference(out[0, 226:], out[1, 226:])) or out, "attn1_output_patch"
    )
    sample(alike)
    found["NAGuidance at scale 1"] = [len(same), max(same)]

# patches before, around and after the blocks
shifted = load()
transformer_of(shifted).patch_embed.text_proj.bias.data += 0.5
found["post_input"] = difference(
    sample(patched(lambda args: {**args, "txt": args["txt"] + 0.5}, "post_input")),
    sample(add_injection(shifted, Injection(TOKENS))),
)
seen = []


def block_patch(args: dict) -> dict:
    options = args["transformer_options"]
    seen.append([args["block_index"], options["block_index"], options["total_blocks"], options["block_type"]])
    seen[-1] += [len(options["uuids"]), list(options["sigmas"].shape), list(options["sample_sigmas"].shape)]
    return args


found["double_block"] = [difference(sample(patched(block_patch, "double_block")), exact), seen[:BLOCKS]]
skipped = applied.clone()
skipped.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", 1)
by_hand = load()
last = transformer_of(by_hand).transformer_blocks[1]
for layer in (last.norm1.linear, last.norm2.linear):  # its gates are closed
    layer.weight.data.zero_()
    layer.bias.data.zero_()
found["patches_replace"] = difference(sample(skipped), sample(add_injection(by_hand, Injection(TOKENS))))

# hooks on a prompt may bring patches along
hook = comfy.hooks.TransformerOptionsHook(
    transformers_dict={"patches": {"attn1_output_patch": [lambda out, _: 2 * out]}}
)
group = comfy.hooks.HookGroup()
group.add(hook)
positive = comfy.hooks.set_hooks_for_conditioning([[TEXT, {}]], group)
both = node_helpers.conditioning_set_values(positive, {})
found["hooks act"] = difference(sample(applied, both), exact)

# positions, as ComfyUI's own models move them
found["ScaleROPE at 1"] = difference(
    sample(nodes_rope.ScaleROPE.execute(applied, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0).args[0]), exact
)
found["ScaleROPE acts"] = difference(
    sample(nodes_rope.ScaleROPE.execute(applied, 0.5, 0.0, 1.0, 0.0, 1.0, 0.0).args[0]), exact
)

# a cache of ComfyUI's around the whole model
kept = nodes_easycache.EasyCacheNode.execute(applied, 0.0, 0.0, 1.0, False).args[0]
found["EasyCache, nothing reused"] = difference(sample(kept), exact)

# what this model has nothing for is refused, not ignored
x = torch.randn(1, transformer_of(plain).config.in_channels, 1, HEIGHT, WIDTH)
found["control"] = refusal(
    lambda: transformer_of(plain)(x, torch.tensor([500.0]), TEXT, control={"input": []}, transformer_options={})
)
host.report(**found)
