"""The DiT: equal to diffusers' without an identity, strict about what it loads."""

import pytest
import torch

from fantasyid_core.dit.config import infer_config
from fantasyid_core.dit.injection import Injection, InjectionRun
from fantasyid_core.dit.transformer import FantasyIDTransformer, from_published
from fantasyid_core.errors import SamplingError, WeightsError
from fantasyid_core.fusion.checkpoint import split_published
from fantasyid_core.io.weights import read, read_config
from fantasyid_lab import dummy_model as standin_weights


@pytest.fixture(scope="module")
def published(standin):
    return split_published(read(standin / "transformer"))


@pytest.fixture(scope="module")
def config(standin):
    return read_config(standin / "transformer")


@pytest.fixture(scope="module")
def model(published, config) -> FantasyIDTransformer:
    return from_published(config, published)


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 7, 32, 16, 24, generator=generator)
    return latents, torch.randn(2, 226, 32, generator=generator), torch.tensor([500, 500])


@torch.no_grad()
def test_without_identity_it_is_diffusers_cogvideox(model, published, config, inputs):
    from fantasyid_lab import reference

    theirs = reference.transformer(config).eval()
    theirs.load_state_dict(published.dit)
    latents, text, timestep = inputs
    image_rotary_emb = model.rotary_embedding(7, 16, 24, "cpu")
    expected = theirs(latents, text, timestep, image_rotary_emb=image_rotary_emb, return_dict=False)[0]
    torch.testing.assert_close(model(latents, text, timestep, image_rotary_emb=image_rotary_emb), expected)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 16, 24), (7, 16, 24), (13, 60, 90), (25, 20, 46)])
def test_positions_are_diffusers(model, frames, height, width):
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    grid, head_dim = (height // 2, width // 2), model.config.attention_head_dim
    crop = get_resize_crop_region_for_grid(grid, 12, 8)
    theirs = get_3d_rotary_pos_embed(head_dim, crop, grid, frames, device="cpu")
    assert torch.equal(torch.stack(model.rotary_embedding(frames, height, width, "cpu")), torch.stack(theirs))


def moved(model, scale: tuple = (1, 1, 1), shift: tuple = (0, 0, 0), frames: int = 7) -> torch.Tensor:
    """Cosines and sines (2, frames, rows, columns, D) of moved positions."""
    return torch.stack(model.rotary_embedding(frames, 16, 24, "cpu", scale=scale, shift=shift)).unflatten(
        1, (frames, 8, 12)
    )


def test_positions_may_be_scaled_and_shifted(model):
    same, longer = moved(model), moved(model, frames=13)
    torch.testing.assert_close(moved(model, scale=(2, 1, 1)), longer[:, ::2])
    torch.testing.assert_close(moved(model, shift=(5, 0, 0)), longer[:, 5:12])
    torch.testing.assert_close(moved(model, scale=(1, 0, 1)), same[:, :, :1].expand_as(same))
    torch.testing.assert_close(moved(model, shift=(0, 1, 0))[:, :, :-1], same[:, :, 1:])
    torch.testing.assert_close(moved(model, shift=(0, 0, 1))[:, :, :, :-1], same[:, :, :, 1:])


@torch.no_grad()
def test_an_identity_is_injected_after_every_second_block(model, inputs):
    latents, text, timestep = inputs
    image_rotary_emb = model.rotary_embedding(7, 16, 24, "cpu")
    asked = []

    class Spy(InjectionRun):
        def add_to(self, hidden, layer, attention, progress):
            asked.append((layer, attention is model.layer_attention[layer], progress))
            return super().add_to(hidden, layer, attention, progress)

    tokens = torch.randn(20, standin_weights.TOKENS, generator=torch.Generator().manual_seed(4))
    plain = model(latents, text, timestep, image_rotary_emb=image_rotary_emb)
    injected = model(
        latents, text, timestep, image_rotary_emb=image_rotary_emb, injector=Spy([Injection(tokens)]), progress=0.5
    )
    assert asked == [(0, True, 0.5), (1, True, 0.5)]
    assert (injected - plain).norm() > 0.01 * plain.norm()


@torch.no_grad()
def test_fewer_frames_use_the_first_positions(model, inputs):
    latents, text, _ = inputs
    words, visual = model.embed(latents, text)
    fewer_words, fewer = model.embed(latents[:, :3], text)
    torch.testing.assert_close(fewer, visual[:, : fewer.shape[1]])
    torch.testing.assert_close(fewer_words, words)


@pytest.mark.parametrize(("frames", "height", "width"), [(8, 16, 24), (7, 8, 24), (7, 16, 16), (7, 15, 24)])
def test_sizes_it_does_not_know_are_refused(model, frames, height, width):
    model.check_sizes(7, 16, 24)
    with pytest.raises(SamplingError):
        model.check_sizes(frames, height, width)


@pytest.mark.parametrize(("height", "width", "kind"), [(24, 16, "portrait"), (16, 16, "square"), (16, 32, "landscape")])
def test_the_way_to_a_video_of_another_shape_is_said(model, height, width, kind):
    with pytest.raises(SamplingError, match=f"For a {kind} video make one of the size that it knows"):
        model.check_sizes(7, height, width)
    assert model.other_shape(32, 48) == "", "larger, of the same shape"


def test_missing_and_mismatched_tensors_are_named(published, config):
    damaged = dict(published.dit)
    damaged.pop("proj_out.weight")
    with pytest.raises(WeightsError, match=r"proj_out\.weight"):
        from_published(config, type(published)(**{**vars(published), "dit": damaged}))
    with pytest.raises(WeightsError, match="another shape"):
        from_published({**config, "time_embed_dim": 64}, published)
    with pytest.raises(WeightsError, match=r"1\.5"):
        from_published({**config, "patch_size_t": 2}, published)


def test_quantised_tensors_are_refused_where_nothing_computes_with_them(published, config):
    note, layer = torch.zeros(2, dtype=torch.uint8), "transformer_blocks.0.attn1.to_q"
    quantised = split_published(published.dit | {f"{layer}.comfy_quant": note})
    assert quantised.is_quantised
    assert not published.is_quantised
    with pytest.raises(WeightsError, match="ComfyUI alone computes with"):
        from_published(config, quantised)
    with pytest.raises(
        WeightsError, match=r"\(transformer_blocks\.0\.attn1\.to_q\.scale_weight\), which this pack does"
    ):
        split_published(published.dit | {f"{layer}.scale_weight": torch.ones(())})


def test_the_identity_encoder_does_not_bear_quantising(standin):
    tensors = read(standin / "transformer")
    layer = next(name for name in tensors if name.startswith("vertex_spiral_net.") and name.endswith(".weight"))
    with pytest.raises(WeightsError, match="identity encoder in this file is quantised"):
        split_published(tensors | {layer.replace(".weight", ".comfy_quant"): torch.zeros(2, dtype=torch.uint8)})


def test_another_kind_of_transformer_is_refused(published, config):
    with pytest.raises(WeightsError, match="activation_fn geglu are not CogVideoX's"):
        from_published({**config, "activation_fn": "geglu"}, published)


def test_a_single_file_without_config_is_understood(published, config):
    without_positions = {k: v for k, v in published.dit.items() if k != "patch_embed.pos_embedding"}
    inferred = infer_config(type(published)(**{**vars(published), "dit": without_positions}))
    same = set(inferred) - {"use_learned_positional_embeddings"}
    assert {name: inferred[name] for name in same} == {name: config.get(name, 2) for name in same}
    with pytest.raises(WeightsError, match=r"config\.json"):
        infer_config(published)
    with pytest.raises(WeightsError, match="no CogVideoX"):
        infer_config(type(published)(**{**vars(published), "dit": {}}))
