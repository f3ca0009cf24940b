"""The image tower: the release's hidden states, sizes from the weights, the cheap way to the one state that is used."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fantasyid_core.errors import WeightsError
from fantasyid_core.fusion.image_tower import ImageTower, apply_rope, rotary


@pytest.fixture(scope="module")
def state(standin) -> dict[str, Tensor]:
    return load_file(standin / "face_encoder" / "image_tower.safetensors")


@pytest.fixture(scope="module")
def tower(state) -> ImageTower:
    return ImageTower.from_state_dict(state)


def relative(ours, theirs) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def test_hidden_states_and_output_are_the_release_s(parity_dir):
    spec = importlib.util.spec_from_file_location("recipe", parity_dir / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    shapes = json.loads((parity_dir / "eva_visual_manifest.json").read_text())
    state = {name: torch.from_numpy(recipe.fill_value(name, s)) for name, s in shapes.items() if "rope" not in name}
    theirs = load_file(parity_dir / "eva_outputs.safetensors")
    hidden, pooled = ImageTower.from_state_dict(state)(torch.from_numpy(recipe.draw("eva:image", (1, 3, 336, 336))))
    assert [tuple(x.shape) for x in hidden] == [(1, 577, 1024)] * 5
    assert relative(hidden[0][:, ::8], theirs["hidden_0"]) < 1e-4
    assert relative(hidden[4][:, ::8], theirs["hidden_4"]) < 1e-4
    assert relative(pooled, theirs["pooled"]) < 1e-4


def test_sizes_come_from_the_weights(tower):
    assert tower.image_size == 56
    assert tower.taps == (1, 2, 3, 4, 5)
    hidden, pooled = tower(torch.rand(2, 3, 56, 56))
    assert [tuple(x.shape) for x in hidden] == [(2, 17, 32)] * 5
    assert pooled.shape == (2, 16)


def test_the_last_hidden_state_needs_neither_the_later_blocks_nor_the_head(state, tower):
    images = torch.rand(2, 3, 56, 56)
    expected = tower(images)[0][4]
    assert torch.equal(tower.last_hidden_state(images), expected)
    live = ImageTower.from_state_dict(state, live_only=True)
    assert torch.equal(live.last_hidden_state(images), expected)
    assert torch.equal(live(images)[0][4], expected)
    assert live(images)[1] is None
    names = set(live.state_dict())
    assert not any(name.startswith(("blocks.5.", "norm.", "head.")) for name in names)
    assert any(name.startswith("blocks.4.") for name in names)


def test_the_published_checkpoint_s_prefix_and_text_tower_are_dealt_with(state, tower):
    published = {f"visual.{name}": tensor for name, tensor in state.items()}
    published |= {f"visual.blocks.{i}.attn.rope.freqs_cos": state["rope.freqs_cos"] for i in range(6)}
    published |= {"text.token_embedding.weight": torch.ones(3), "logit_scale": torch.ones(())}
    images = torch.rand(1, 3, 56, 56)
    assert torch.equal(ImageTower.from_state_dict(published)(images)[1], tower(images)[1])


def test_no_weight_is_copied(state, tower):
    assert tower.blocks[0].mlp.w1.weight.data_ptr() == state["blocks.0.mlp.w1.weight"].data_ptr()


def test_rotary_positions_turn_with_row_and_column():
    cosine, sine = (x.unflatten(0, (24, 24)) for x in rotary(576, 64))
    angle = torch.atan2(sine, cosine)
    assert torch.allclose(cosine**2 + sine**2, torch.ones_like(cosine))
    assert torch.equal(angle[5, :, :32], angle[5, :1, :32].expand(24, -1)), "the first half knows the row only"
    assert torch.equal(angle[:, 5, 32:], angle[:1, 5, 32:].expand(24, -1)), "the second half the column only"
    assert angle[1, 0, 0] == angle[0, 1, 32] == pytest.approx(16 / 24)
    assert torch.equal(angle[..., 0::2], angle[..., 1::2])


def test_attention_sees_positions_only_relative_to_each_other(tower):
    """Queries and keys turned by the positions of two patches meet as those of two others at the same distance."""
    cosine, sine = rotary(576, 64)
    q, k = torch.randn(2, 64)

    def meet(a: int, b: int) -> Tensor:
        return apply_rope(q, (cosine[a], sine[a])) @ apply_rope(k, (cosine[b], sine[b]))

    assert torch.allclose(meet(0, 27), meet(100, 127), atol=1e-4)
    assert not torch.allclose(meet(0, 27), meet(0, 28), atol=1e-4)


def test_crops_are_resized_and_normalised_as_for_clip(tower):
    colour = torch.tensor([0.48145466, 0.4578275, 0.40821073]) + torch.tensor([0.26862954, 0, -0.27577711])
    images = tower.preprocess(colour.expand(2, 512, 512, 3))
    assert images.shape == (2, 3, 56, 56)
    expected = torch.tensor([1.0, 0, -1])[:, None, None].expand(2, 3, 56, 56)
    assert torch.allclose(images, expected, atol=1e-5)


def test_resizing_is_torchvision_s(tower):
    functional = pytest.importorskip("torchvision.transforms.functional", exc_type=ImportError)
    crop = torch.rand(1, 512, 512, 3)
    bicubic = functional.InterpolationMode.BICUBIC
    expected = functional.normalize(
        functional.resize(crop.movedim(-1, 1), [56, 56], bicubic),
        [0.48145466, 0.4578275, 0.40821073],
        [0.26862954, 0.26130258, 0.27577711],
    )
    assert torch.allclose(tower.preprocess(crop), expected, atol=1e-5)


@pytest.mark.parametrize(
    "lost",
    ["cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.w1.weight", "blocks.3.", "blocks.", "norm."],
)
def test_weights_of_another_tower_are_refused(state, lost):
    with pytest.raises(WeightsError, match="EVA02-CLIP"):
        ImageTower.from_state_dict({name: tensor for name, tensor in state.items() if not name.startswith(lost)})


def test_a_tower_that_is_too_shallow_is_refused(state):
    shallow = {name: tensor for name, tensor in state.items() if not name.startswith(("blocks.4", "blocks.5"))}
    with pytest.raises(WeightsError, match="fewer than 6 blocks"):
        ImageTower.from_state_dict(shallow)
