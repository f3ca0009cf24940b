"""What ComfyUI and its nodes hand to a DiT reaches ours (docs/comfyui_options.md)."""

from collections.abc import Callable

import comfy.hooks
import comfy.ldm.modules.attention as comfy_attention
import pytest
import torch
import torch.nn.functional as F
from comfy_extras import nodes_easycache, nodes_hypertile, nodes_model_advanced, nodes_rope, nodes_tomesd
from pack.fantasyid_core.dit import attention as core_attention
from pack.fantasyid_core.dit.injection import Injection
from pack.fantasyid_core.dit.step_cache import CacheSettings
from pack.fantasyid_core.errors import SamplingError
from pack.fantasyid_core.fusion.identity import Identity
from pack.nodes.host import attention
from pack.nodes.host.options import add_injection, injections_of, set_fp8_products, set_step_cache, transformer_of
from pack.nodes.host.run import KEY
from pack.nodes.injection import FantasyIDApply
from pack.nodes.people import FantasyIDPeople
from pack.tests.support import in_comfyui
from pack.tests.support.in_comfyui import difference, guider, load
from torch import Tensor
from torch.nn.attention import SDPBackend

SEED = torch.Generator().manual_seed(0)
FRAMES, HEIGHT, WIDTH = 2, 20, 20
NOISE = torch.randn(1, 16, FRAMES, HEIGHT, WIDTH, generator=SEED)
TEXT, NEGATIVE = torch.randn(2, 1, 226, 32, generator=SEED)
TOKENS = torch.randn(20, 64, generator=SEED)
VIDEO = FRAMES * HEIGHT * WIDTH // 4  # tokens: patches of 2 × 2
ALL = 226 + VIDEO
STEPS, BLOCKS, INJECTIONS = 3, 4, 2
HEADS, HEAD = 2, 16


def sample(model, positive: list | None = None) -> Tensor:
    return in_comfyui.sample(guider(model, positive or [[TEXT, {}]], [[NEGATIVE, {}]]), NOISE, STEPS)


@pytest.fixture(scope="module")
def model(plain):
    return add_injection(plain, Injection(TOKENS))


@pytest.fixture(scope="module")
def exact(model) -> Tensor:
    return sample(model)


@pytest.fixture
def by_hand(standin_nano) -> Callable:
    """Latents of a model of its own whose transformer was changed."""

    def changed(change: Callable) -> Tensor:
        model = load(standin_nano)
        change(transformer_of(model))
        return sample(add_injection(model, Injection(TOKENS)))

    return changed


def patched(model, patch: Callable, name: str):
    model = model.clone()
    model.set_model_patch(patch, name)
    return model


def test_all_of_ours_is_under_one_key_that_clones_share(model):
    switched = set_step_cache(set_fp8_products(model, False), CacheSettings())
    options = switched.model_options["transformer_options"]
    assert [key for key in options if key.startswith(KEY)] == ["fantasyid"]
    ours = options[KEY]
    assert (len(ours.injections), ours.fp8, ours.step_cache) == (1, False, CacheSettings())
    assert switched.clone().model_options["transformer_options"][KEY] is ours


def test_nodes_that_apply_an_identity_let_it_act(plain):
    frame_tokens = TOKENS[8:].repeat(2, 1, 1)
    who = Identity(TOKENS[:8], TOKENS[8:], torch.zeros(512, 512, 3), frame_tokens)
    settings = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "layer_weights": ""}
    for followed in (
        FantasyIDApply.run(model=plain, identity=who, **settings).args[0],
        FantasyIDPeople.run(model=plain, identity_1=who).args[0],
    ):
        [injection] = injections_of(followed)
        assert injection.frame_tokens is frame_tokens


def test_a_run_leaves_nothing_behind(plain, model):
    def state() -> dict:
        return {name: value for name, value in vars(transformer_of(plain)).items() if not name.startswith("__")}

    before = state()
    sample(model)
    assert state() == before
    assert model.model_options["transformer_options"][KEY].run is None


# Which attention is called


@pytest.fixture
def overridden(model):
    """A MODEL with a node's own attention (Patch Sage Attention), and what that is called with."""
    calls = []

    def attend(function, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs) -> Tensor:
        options = kwargs["skip_reshape"], "sigmas" in kwargs["transformer_options"]
        calls.append((tuple(q.shape), k.shape[2], heads, *options))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = attend
    return model, calls


CALLS = STEPS * (BLOCKS + INJECTIONS)


def test_a_nodes_attention_is_called_for_every_attention_of_the_dit(overridden, exact):
    model, calls = overridden
    assert difference(sample(model), exact) < 1e-5
    assert len(calls) == CALLS
    step = calls[: CALLS // STEPS]
    of_blocks = [call for call in step if call[1] == ALL]
    assert of_blocks == [((2, HEADS, ALL, HEAD), ALL, HEADS, True, True)] * BLOCKS
    injections = [(shape[0], shape[2], keys) for shape, keys, *_ in step if keys != ALL]
    assert injections == [(2, VIDEO, 20)] * INJECTIONS


def test_a_nodes_attention_acts(model, exact):
    nothing = model.clone()
    nothing.model_options["transformer_options"]["optimized_attention_override"] = lambda function, q, *_, **__: (
        torch.zeros_like(q).transpose(1, 2).flatten(2)
    )
    assert difference(sample(nothing), exact) > 1e-3


@pytest.mark.skipif(
    not hasattr(nodes_model_advanced, "ModelAttentionBackend"), reason="this ComfyUI has no ModelAttentionBackend"
)
def test_comfyuis_node_chooses_the_attention(model, exact, monkeypatch):
    calls, known = [], comfy_attention.REGISTERED_ATTENTION_FUNCTIONS
    pytorch = known["pytorch"]
    monkeypatch.setitem(known, "pytorch", lambda *a, **b: calls.append(1) or pytorch(*a, **b))
    by_node = nodes_model_advanced.ModelAttentionBackend().patch(model, "pytorch attention")[0]
    assert difference(sample(by_node), exact) < 1e-5
    assert len(calls) == CALLS


def test_what_comfyui_was_started_with_is_called_for_every_attention(model, exact, monkeypatch):
    """Sage, flash, split: looked up when it is needed."""
    calls, original = [], comfy_attention.optimized_attention
    monkeypatch.setattr(comfy_attention, "optimized_attention", lambda *a, **b: calls.append(1) or original(*a, **b))
    assert difference(sample(model), exact) == 0
    assert len(calls) == CALLS


@pytest.fixture
def measured(monkeypatch) -> list[tuple]:
    """As on a card where nobody chose: which shapes the fastest of PyTorch's kernels is asked for. It is "math"."""
    shapes = []

    def fastest(shape: tuple, dtype: torch.dtype, device: torch.device) -> SDPBackend:
        shapes.append((*shape, dtype, device.type))
        return SDPBackend.MATH

    monkeypatch.setattr(comfy_attention, "optimized_attention", comfy_attention.attention_pytorch)
    monkeypatch.setattr(attention, "_has_kernels", lambda device: True)
    monkeypatch.setattr(attention, "fastest_backend", fastest)
    return shapes


def first_backend() -> int:
    """Which kernel PyTorch's attention would try first."""
    return int(torch._C._get_sdp_priority_order()[0])


def test_where_nobody_chose_the_blocks_ask_for_the_fastest_kernel(model, exact, measured, monkeypatch):
    tried, attend, before = {"blocks": [], "injections": []}, attention.scaled_dot_product, first_backend()

    def record(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tried["blocks" if k.shape[2] > len(TOKENS) else "injections"].append(first_backend())
        return attend(q, k, v)

    for module in (attention, core_attention):
        monkeypatch.setattr(module, "scaled_dot_product", record)
    assert difference(sample(model), exact) < 1e-5
    assert measured[0] == (2, HEADS, ALL, HEAD, torch.float32, "cpu")
    math = int(SDPBackend.MATH.value)
    assert tried == {"blocks": [math] * STEPS * BLOCKS, "injections": [before] * STEPS * INJECTIONS}
    assert before != math
    assert first_backend() == before


def test_nothing_is_measured_where_somebody_chose_or_trains(overridden, measured, monkeypatch):
    sample(overridden[0])
    shape = {}, (1, 2, 4096, 64), torch.float32, torch.device("cpu")
    with torch.enable_grad():
        attention.attention_for(*shape)
    monkeypatch.setattr(comfy_attention, "optimized_attention", comfy_attention.attention_split)
    attention.attention_for(*shape)
    assert measured == []


# Patches around the attention inside a block, as ComfyUI's Flux calls them


def double_values(transformer) -> None:
    for block in transformer.transformer_blocks:
        block.attn1.to_out[0].weight.data *= 2


def test_a_patch_of_the_attention_s_output_acts_like_doubled_weights_and_is_told_where_it_is(model, by_hand):
    calls = []

    def patch(out: Tensor, extra_options: dict) -> Tensor:
        names = ("block_index", "total_blocks", "block_type", "img_slice", "cond_or_uncond")
        calls.append((tuple(out.shape[1:]), *(extra_options[name] for name in names)))
        return 2 * out

    assert difference(sample(patched(model, patch, "attn1_output_patch")), by_hand(double_values)) < 1e-5
    assert calls[:BLOCKS] == [
        ((ALL, HEADS * HEAD), i, BLOCKS, "double", [226, ALL], [1, 0]) for i in range(BLOCKS)
    ]  # fmt: skip


def test_a_patch_of_the_attention_s_input_acts_like_doubled_weights_after_it(model, by_hand):
    def patch(q: Tensor, k: Tensor, v: Tensor, pe, attn_mask, extra_options: dict) -> dict:
        return {"q": q, "k": k, "v": 2 * v, "pe": pe, "attn_mask": attn_mask}

    assert difference(sample(patched(model, patch, "attn1_patch")), by_hand(double_values)) < 1e-5


def test_patches_for_unets_are_refused(model):
    tile = nodes_hypertile.HyperTile.execute(model, 256, 2, 0, False)[0]
    merged = nodes_tomesd.TomePatchModel.execute(model, 0.3).args[0]
    for foreign in (tile, merged):
        with pytest.raises(SamplingError, match="is for another kind of model"):
            sample(foreign)


def test_a_mask_is_refused(model):
    masking = patched(model, lambda q, k, v, pe, attn_mask, extra_options: {"attn_mask": q[0, 0]}, "attn1_patch")
    with pytest.raises(SamplingError, match="masks tokens"):
        sample(masking)


def test_naguidance_acts_on_the_videos_tokens(model, exact):
    nag = pytest.importorskip("comfy_extras.nodes_nag", reason="this ComfyUI has no NAGuidance").NAGuidance
    assert difference(sample(nag.execute(model, 5.0, 0.5, 1.5).args[0]), exact) > 1e-3
    differences = []  # at scale 1 the video's tokens of both branches attend alike: those of the prompt

    def compare(out: Tensor, _) -> Tensor:
        differences.append(difference(out[0, 226:], out[1, 226:]))
        return out

    sample(patched(nag.execute(model, 1.0, 1.0, 1.5).args[0], compare, "attn1_output_patch"))
    assert differences == [0] * STEPS * BLOCKS


# Patches before, around and instead of blocks; hooks; positions; caches


def test_patches_before_the_blocks(model, by_hand):
    def shift(transformer) -> None:
        transformer.patch_embed.text_proj.bias.data += 0.5

    shifted = patched(model, lambda args: {**args, "txt": args["txt"] + 0.5}, "post_input")
    assert difference(sample(shifted), by_hand(shift)) < 1e-5


def test_patches_after_a_block_are_told_where_they_are(model, exact):
    calls = []

    def patch(args: dict) -> dict:
        options = args["transformer_options"]
        where = args["block_index"], options["block_index"], options["total_blocks"], options["block_type"]
        calls.append((*where, len(options["uuids"]), len(options["sigmas"]), len(options["sample_sigmas"])))
        return args

    assert difference(sample(patched(model, patch, "double_block")), exact) == 0
    assert calls[:BLOCKS] == [(i, i, BLOCKS, "double", 2, 1, STEPS + 1) for i in range(BLOCKS)]


def test_patches_instead_of_a_block(model, by_hand):
    def close_gates(transformer) -> None:
        block = transformer.transformer_blocks[1]
        for layer in (block.norm1.linear, block.norm2.linear):
            layer.weight.data.zero_()
            layer.bias.data.zero_()

    skipped = model.clone()
    skipped.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", 1)
    assert difference(sample(skipped), by_hand(close_gates)) < 1e-5


def test_hooks_bring_patches_along(model, exact):
    patches = {"attn1_output_patch": [lambda out, _: 2 * out]}
    group = comfy.hooks.HookGroup()
    group.add(comfy.hooks.TransformerOptionsHook(transformers_dict={"patches": patches}))
    positive = comfy.hooks.set_hooks_for_conditioning([[TEXT, {}]], group)
    assert difference(sample(model, positive), exact) > 1e-3


def test_positions_are_scaled(model, exact):
    def scaled(scale: float):
        return nodes_rope.ScaleROPE.execute(model, scale, 0.0, 1.0, 0.0, 1.0, 0.0).args[0]

    assert difference(sample(scaled(1.0)), exact) == 0
    assert difference(sample(scaled(0.5)), exact) > 1e-3


def test_easycache_runs_around_the_model(model, exact):
    cached = nodes_easycache.EasyCacheNode.execute(model, 0.0, 0.0, 1.0, False).args[0]
    assert difference(sample(cached), exact) == 0, "nothing reused"


def test_a_controlnet_is_refused(plain):
    transformer = transformer_of(plain)
    x = torch.randn(1, transformer.config.in_channels, 1, HEIGHT, WIDTH, generator=SEED)
    with pytest.raises(SamplingError, match="ComfyUI has none for CogVideoX"):
        transformer(x, torch.tensor([500.0]), TEXT, control={"input": []}, transformer_options={})
