"""The DiT as ComfyUI's MODEL: sampling, injection, LoRA, fp8, partial loading, patches; on both layouts of models."""

from pathlib import Path

import comfy.patcher_extension
import comfy.samplers
import comfy.sd
import pytest
import torch
from pack.fantasyid_core.dit.injection import Injection, LayerAttention
from pack.fantasyid_core.dit.region import Region
from pack.fantasyid_core.dit.transformer import from_published
from pack.fantasyid_core.errors import IdentityError, SamplingError, WeightsError
from pack.fantasyid_core.fusion.checkpoint import split_published
from pack.fantasyid_core.io.weights import read, read_config
from pack.nodes.host.options import add_injection, transformer_of
from pack.nodes.host.sampler import ReleaseSampler
from pack.tests.support import in_comfyui
from pack.tests.support.in_comfyui import difference, guider
from torch import Tensor, nn

STEPS = 6
SEED = torch.Generator().manual_seed(0)
TEXT, NEGATIVE = torch.randn(2, 1, 226, 32, generator=SEED)
TOKENS = torch.randn(20, 64, generator=SEED)
ONCE = comfy.samplers.KSAMPLER(lambda model, x, sigmas, extra_args, **_: model(x, sigmas[:1], **extra_args))


class Layout:
    """A model folder, and inputs of its sizes."""

    def __init__(self, folder: Path):
        self.folder, self.config = folder, read_config(folder / "transformer")
        self.size = self.config["sample_height"], self.config["sample_width"]
        generator = torch.Generator().manual_seed(1)
        self.noise = torch.randn(1, 16, 3, *self.size, generator=generator)
        self.first = torch.randn(1, 16, 1, *self.size, generator=generator)

    def load(self, weight_dtype: str = "default", **changes):
        return in_comfyui.load(self.folder, weight_dtype, **changes)

    def sample(self, model, sampler="ddim", *, image: bool = True, positive: Tensor = TEXT, cfg: float = 6.0) -> Tensor:
        extra = {"concat_latent_image": self.first} if image else {}
        made = guider(model, [[positive, extra]], [[NEGATIVE, extra]], cfg)
        return in_comfyui.sample(made, self.noise, STEPS, sampler)


@pytest.fixture(scope="module", params=["standin", "standin_nano"])
def layout(request) -> Layout:
    """The published model's layout, with learned positions, and FantasyID-nano's, with rotary positions alone."""
    return Layout(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def model(layout):
    return layout.load()


@pytest.fixture(scope="module")
def applied(model):
    """The MODEL with an identity."""
    return add_injection(model, Injection(TOKENS))


@pytest.fixture(scope="module")
def plain(layout, model) -> Tensor:
    """Latents without an identity."""
    return layout.sample(model)


@pytest.fixture(scope="module")
def exact(layout, applied) -> Tensor:
    """Latents with the identity."""
    return layout.sample(applied)


def test_a_prediction_through_comfyui_equals_the_core(layout, model):
    core = from_published(layout.config, split_published(read(layout.folder / "transformer"))).float()
    x = torch.cat([layout.noise, nn.functional.pad(layout.first, (0, 0, 0, 0, 0, 2))], 1)
    time, rotary = torch.tensor([500.0]), core.rotary_embedding(3, *layout.size, "cpu")
    theirs = core(x.transpose(1, 2), TEXT, time, image_rotary_emb=rotary)
    assert difference(transformer_of(model)(x, time, TEXT).transpose(1, 2), theirs) < 1e-5


def test_the_stock_ddim_sampler_and_the_released_loop_agree(layout, applied, exact):
    released = layout.sample(applied, ReleaseSampler("ddim", STEPS, torch.Generator()))
    assert nn.functional.cosine_similarity(released.flatten(), exact.flatten(), 0) >= 0.999


def test_the_dpm_scheduler_repeats_with_its_seed(layout, applied):
    samplers = (ReleaseSampler("dpm", STEPS, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(*(layout.sample(applied, sampler) for sampler in samplers))


def test_the_image_condition_changes_the_video_of_a_model_that_was_trained_with_it(layout, model, plain):
    acts = difference(layout.sample(model, image=False), plain)
    assert acts > 0.01 if layout.config.get("first_frame_condition", True) else acts == 0


def test_applications_share_weights_and_leave_the_plain_model_alone(layout, model, applied, plain, exact):
    assert difference(exact, plain) > 0.01
    assert applied.model is model.model
    assert torch.equal(layout.sample(model), plain)
    assert difference(layout.sample(add_injection(model, Injection(TOKENS, 0.0))), plain) == 0
    assert difference(layout.sample(add_injection(applied, Injection(TOKENS.flip(0)))), exact) > 0.01


def test_start_percent_bounds_when_the_identity_acts(layout, model, plain):
    assert difference(layout.sample(add_injection(model, Injection(TOKENS, start=0.5))), plain) > 1e-3
    assert difference(layout.sample(add_injection(model, Injection(TOKENS, start=0.99))), plain) == 0


def test_masks_and_seconds_bound_where_and_when_the_identity_acts(layout, model, plain, exact):
    def sample(**region) -> torch.Tensor:
        return layout.sample(add_injection(model, Injection(TOKENS, region=Region(**region))))

    assert torch.equal(sample(mask=torch.ones(1, 8, 12)), exact)
    assert torch.equal(sample(mask=torch.zeros(1, 8, 12)), plain)
    half = torch.ones(1, 8, 12).tril()
    assert difference(sample(mask=half), plain) > 1e-3
    assert difference(sample(mask=half), exact) > 1e-3
    assert difference(sample(from_second=0.5), sample(to_second=0.5)) > 1e-3
    with pytest.raises(SamplingError, match=r"mask has 2 frames, but the video has \d+\."):
        sample(mask=torch.ones(2, 8, 12))


def test_guidance_leads_to_an_identity_that_the_negative_branch_goes_without(layout, model, applied):
    """One prediction, put together by hand from what either branch predicts alone."""
    guided = add_injection(model, Injection(TOKENS, guide_identity=True))
    identity = layout.sample(applied, ONCE, image=False, cfg=1.0)
    without = layout.sample(model, ONCE, image=False, positive=NEGATIVE, cfg=1.0)
    prediction = layout.sample(guided, ONCE, image=False)
    assert difference(prediction, without + 6 * (identity - without)) < 1e-4
    assert difference(prediction, layout.sample(applied, ONCE, image=False)) > 1e-3
    assert difference(layout.sample(guided, ONCE, image=False, cfg=1.0), identity) == 0


def test_keys_and_values_are_computed_once_per_layer_and_run(layout, applied, monkeypatch):
    calls, keys_values = [], LayerAttention.keys_values
    monkeypatch.setattr(
        LayerAttention, "keys_values", lambda self, tokens: calls.append(1) or keys_values(self, tokens)
    )
    layout.sample(applied)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("prefix", "layer"),
    [
        ("transformer.", "transformer_blocks.0.attn1.to_q"),
        ("diffusion_model.", "transformer_blocks.1.ff.net.2"),
        ("transformer.", "layer_attention.0.to_kv"),
    ],
    ids=["as PEFT names it", "as ComfyUI names it", "of an injection layer"],
)
def test_a_stock_lora_equals_weights_changed_by_hand(layout, model, applied, exact, prefix, layer):
    rows, columns = transformer_of(model).get_submodule(layer).weight.shape
    generator = torch.Generator().manual_seed(2)
    up, down = 0.5 * torch.randn(rows, 2, generator=generator), torch.randn(2, columns, generator=generator)
    lora = {f"{prefix}{layer}.lora_A.weight": down, f"{prefix}{layer}.lora_B.weight": up}
    latents = layout.sample(comfy.sd.load_lora_for_models(applied, None, lora, 0.7, 0)[0])
    by_hand = layout.load()
    transformer_of(by_hand).get_submodule(layer).weight.data += 0.7 * up @ down
    assert difference(latents, layout.sample(add_injection(by_hand, Injection(TOKENS)))) < 1e-4
    assert difference(latents, exact) > 1e-3
    assert difference(layout.sample(applied), exact) == 0, "it leaves no trace"


def test_fp8_storage_equals_dequantised_weights(layout):
    fp8, dequantised = layout.load("fp8_e4m3fn"), layout.load()
    for layer in transformer_of(fp8).transformer_blocks.modules():
        assert not isinstance(layer, nn.Linear) or layer.weight.dtype == torch.float8_e4m3fn
    for ours, theirs in zip(transformer_of(fp8).parameters(), transformer_of(dequantised).parameters(), strict=True):
        theirs.data = ours.data.to(torch.float32)
    assert difference(layout.sample(fp8), layout.sample(dequantised)) == 0


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_stays_near(layout, plain, name, dtype):
    stored = layout.load(name)
    assert transformer_of(stored).proj_out.weight.dtype == dtype
    assert difference(layout.sample(stored), plain) < 0.05


def test_partial_loading_changes_nothing(layout, exact):
    """ComfyUI keeps a part of the weights elsewhere and casts them when they are used."""
    partial = add_injection(layout.load(), Injection(TOKENS))
    partial.load(torch.device("cpu"), lowvram_model_memory=200_000)
    assert partial.model.model_lowvram
    assert difference(layout.sample(partial), exact) == 0


def test_patches_and_wrappers_of_other_packs_take_part(layout, applied, exact):
    seen = []

    def replacement(args: dict, extra: dict) -> dict:
        seen.append("replaced")
        return extra["original_block"](args)

    def wrapper(run, *args, **kwargs) -> Tensor:
        seen.append("wrapped")
        return run(*args, **kwargs)

    patched = applied.clone()
    patched.set_model_patch(lambda args: seen.append(args["block_index"]) or args, "double_block")
    patched.set_model_patch_replace(replacement, "dit", "double_block", 1)
    patched.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, wrapper)
    assert difference(layout.sample(patched), exact) == 0
    assert [seen.count(what) for what in (0, 3, "replaced", "wrapped")] == [STEPS] * 4


def test_misfits_are_named(layout, model):
    with pytest.raises(IdentityError, match="width 10"):
        add_injection(model, Injection(TOKENS[:, :10]))
    with pytest.raises(WeightsError, match="do not fit 5 blocks"):
        layout.load(num_layers=5)
    with pytest.raises(WeightsError, match="does not describe a CogVideoX VAE"):
        layout.load(vae_config={"latent_rgb_factors": [[0.1, 0.2, 0.3], [0.1]]})


def test_only_learned_positions_bind_a_model_to_one_size(layout, caplog):
    def warnings() -> list[str]:
        said = [record.getMessage() for record in caplog.records]
        return [line for line in said if "the model knows" in line]

    model = layout.load()
    layout.sample(model)
    assert warnings() == []
    if layout.config["use_learned_positional_embeddings"]:
        with pytest.raises(SamplingError, match="192 × 128"):
            transformer_of(model).check_sizes(3, 8, 8)
        return
    transformer_of(model).check_sizes(3, 8, 8)
    x = torch.randn(1, 32, 2, 8, 20, generator=torch.Generator().manual_seed(3))
    other = transformer_of(model)(x, torch.tensor([500.0]), TEXT)
    assert other.shape == (1, 16, 2, 8, 20)
    assert other.isfinite().all()
    smaller = guider(model, [[TEXT, {}]], [[NEGATIVE, {}]])
    in_comfyui.sample(smaller, layout.noise[..., :8, :8], STEPS)
    [warning] = warnings()
    assert "knows 160 × 160 pixels and at most 25 frames" in warning


def test_live_previews_have_a_colour_for_every_channel(model):
    factors = model.model.latent_format.latent_rgb_factors
    assert [len(colour) for colour in factors] == [3] * 16


def test_a_vae_may_bring_the_scale_and_the_preview_colours_of_its_latents(layout, model):
    colours = {"latent_rgb_factors": [[0.1, 0.2, 0.3]] * 16, "latent_rgb_factors_bias": [0, 0, 1]}
    own = layout.load(vae_config={"scaling_factor": 1.2, **colours}).model.latent_format
    assert own.scale_factor == 1.2
    assert own.latent_rgb_factors == colours["latent_rgb_factors"]
    assert model.model.latent_format.scale_factor == 0.7
