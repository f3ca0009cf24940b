"""The recipe without a host: what the transformer is called with, and what becomes of its latents."""

from types import SimpleNamespace

import pytest
import torch

from fantasyid_core.dit.injection import LayerAttention, SampleInjector
from fantasyid_core.sampling.pipeline import Conditions, Guidance, decode_frames, encode_first_frame, sample

SIZE = (2, 3, 16, 4, 6)  # B, T, C, h, w


class Transformer:
    """Predicts the mean text of each row and records what it was given."""

    def __init__(self):
        self.calls: list[dict] = []

    def rotary_embedding(self, *size) -> str:
        return f"rotary of {size}"

    def __call__(self, latents: torch.Tensor, text: torch.Tensor, timestep: torch.Tensor, **given) -> torch.Tensor:
        self.calls.append({"latents": latents, "text": text, "timestep": timestep, **given})
        return text.mean((1, 2)).view(-1, 1, 1, 1, 1) * torch.ones(len(latents), *SIZE[1:])


@pytest.fixture
def conditions() -> Conditions:
    return Conditions(
        text=torch.ones(2, 4, 8),
        negative_text=torch.zeros(1, 4, 8),
        image=torch.full(SIZE, 5.0),
        tokens=torch.arange(2 * 3 * 8.0).reshape(2, 3, 8),
        strength=torch.tensor([1.0, 0.5]),
    )


def call_of(conditions: Conditions, guidance: Guidance) -> dict:
    transformer = Transformer()
    sample(transformer, torch.randn(SIZE), conditions, guidance, scheduler="ddim", steps=1)
    return transformer.calls[0]


def test_guidance_leads_from_the_negative_text_to_the_text(conditions: Conditions):
    noise = torch.randn(SIZE)
    with_guidance = sample(Transformer(), noise, conditions, Guidance(3.0), scheduler="ddim", steps=1)
    conditions = Conditions(3 * conditions.text, conditions.negative_text, conditions.image)
    tripled = sample(Transformer(), noise, conditions, Guidance(1.0), scheduler="ddim", steps=1)
    torch.testing.assert_close(with_guidance, tripled)


def test_an_injector_stands_for_the_tokens(conditions: Conditions):
    transformer, injector = Transformer(), object()
    sample(transformer, torch.randn(SIZE), conditions, Guidance(6.0), scheduler="ddim", steps=1, injector=injector)
    assert transformer.calls[0]["injector"] is injector


def test_without_guidance_there_is_one_branch(conditions: Conditions):
    call = call_of(conditions, Guidance(1.0))
    assert torch.equal(call["text"], conditions.text)
    assert call["latents"].shape == (2, 3, 32, 4, 6)
    assert call["timestep"].tolist() == [999, 999]
    assert call["progress"] == 0
    assert call["image_rotary_emb"] == "rotary of (3, 4, 6, device(type='cpu'))"


def test_as_released_both_branches_have_the_identity(conditions: Conditions):
    branches = conditions.branches(Guidance(6.0))
    assert branches.strength.tolist() == [1.0, 0.5, 1.0, 0.5]
    assert branches.text.mean((1, 2)).tolist() == [0, 0, 1, 1]
    assert torch.equal(branches.image, torch.full((4, *SIZE[1:]), 5.0))


@pytest.mark.parametrize("strength", [torch.ones(2), None])
def test_guidance_to_the_identity_starts_from_a_branch_without_it(conditions: Conditions, strength):
    conditions = Conditions(conditions.text, conditions.negative_text, conditions.image, conditions.tokens, strength)
    branches = conditions.branches(Guidance(6.0, guide_identity=True))
    assert branches.strength.tolist() == [0.0, 0.0, 1.0, 1.0]
    assert branches.image.mean((1, 2, 3, 4)).tolist() == [0.0, 0.0, 5.0, 5.0]


def test_strength_0_leaves_the_first_frame_out_too(conditions: Conditions):
    conditions = Conditions(
        conditions.text, conditions.negative_text, conditions.image, conditions.tokens, torch.tensor([0.0, 1.0])
    )
    image = call_of(conditions, Guidance(1.0))["latents"][:, :, 16:]
    assert image.mean((1, 2, 3, 4)).tolist() == [0.0, 5.0]


def test_every_sample_gets_its_own_identity_and_strength():
    torch.manual_seed(0)
    attention = LayerAttention(dim=8, token_dim=6, inner_dim=8, head_dim=4).requires_grad_(False)
    hidden, tokens, strength = torch.randn(2, 5, 8), torch.randn(2, 3, 6), torch.tensor([0.0, 0.5])
    with torch.no_grad():
        added = SampleInjector(tokens, strength).add_to(hidden, 0, attention, 0.0)
        torch.testing.assert_close(added[0], hidden[0])
        torch.testing.assert_close(added[1], hidden[1] + 0.5 * attention(hidden[1:], tokens[1:])[0])


def test_a_shared_layer_stands_for_all():
    torch.manual_seed(0)
    own, shared = (LayerAttention(dim=8, token_dim=6, inner_dim=8, head_dim=4) for _ in range(2))
    hidden, tokens = torch.randn(1, 5, 8), torch.randn(1, 3, 6)
    torch.testing.assert_close(
        SampleInjector(tokens, shared_layer=shared).add_to(hidden, 0, own, 0.0), hidden + shared(hidden, tokens)
    )


def autoencoder() -> torch.nn.Module:
    """Encodes to pixels' values at an eighth of the size; decodes to four frames a latent after the first."""

    class Fake(torch.nn.Linear):
        config = SimpleNamespace(scaling_factor=2.0)

        def encode(self, pixels):
            return SimpleNamespace(sample=lambda generator: pixels[..., ::8, ::8])

        def decode(self, latents):
            return latents.repeat_interleave(4, 2)[:, :3, 3:]

    return Fake(1, 1)


def test_the_first_frame_is_scaled_and_followed_by_zeros():
    image = encode_first_frame(autoencoder(), torch.ones(1, 3, 1, 16, 16), 3, torch.Generator())
    assert image.shape == (1, 3, 3, 2, 2)
    assert image.mean((0, 2, 3, 4)).tolist() == [2.0, 0.0, 0.0]


@pytest.mark.parametrize(("latents", "shades"), [(1, [0]), (2, [0, *[1] * 4]), (3, [0, *[1] * 4, *[2] * 4])])
def test_any_number_of_latents_makes_four_frames_each_after_the_first(latents: int, shades: list[int]):
    values = torch.arange(latents).view(1, latents, 1, 1, 1).expand(1, latents, 3, 2, 2) * 0.2
    frames = decode_frames(autoencoder(), values)
    assert frames.dtype == torch.uint8
    assert frames[0, :, 0, 0, 0].tolist() == [round(127.5 + 12.75 * shade) for shade in shades]
