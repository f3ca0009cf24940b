"""Domain randomisation of reference photos: what is drawn, how far it may go, and that it can be repeated."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from fantasyid_core.errors import TrainingError
from fantasyid_lab.people.clip import still
from fantasyid_lab.people.person import person
from fantasyid_lab.people.variety import DISCS, varied
from fantasyid_lab.training import settings
from fantasyid_lab.training.options import FaceOptions
from fantasyid_lab.training.randomise import Randomisation, jpeg, randomise

SIZE, COUNT = 64, 12
FACE = torch.tensor([[24.0, 26.0], [40.0, 26.0], [32.0, 35.0], [26.0, 43.0], [38.0, 43.0]])
SHIPPED = settings.read(settings.HERE / "face.toml").options.randomise
SHARES = ("clean", "glasses", "hats", "hair", "occluders", "shadows", "jpeg")


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """Smooth pictures with some structure, all channels between 0.2 and 0.8."""
    places = torch.linspace(0, 40, SIZE)
    waves = torch.sin(places[:, None] + torch.arange(COUNT)[:, None, None]) * torch.cos(places[None, :])
    return (0.5 + 0.3 * waves)[..., None] * torch.tensor([1.0, 0.8, 0.6])


def changed(photos: Tensor, amount: Randomisation, seed: int = 0, **changes) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return randomise(photos, FACE.expand(len(photos), -1, -1), generator, amount, **changes)


def test_photos_stay_in_range_and_differ_by_the_generator_alone(photos: Tensor):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = changed(photos, SHIPPED)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"
    assert first.shape == photos.shape
    assert first.min() >= 0
    assert first.max() <= 1
    torch.manual_seed(6)
    assert torch.equal(changed(photos, SHIPPED), first)
    assert not torch.equal(changed(photos, SHIPPED, seed=1), first)


def test_photos_are_as_exact_within_a_training_in_half_precision(photos: Tensor):
    with torch.autocast("cpu", torch.bfloat16):
        inside = changed(photos, SHIPPED)
    assert torch.equal(inside, changed(photos, SHIPPED))


@pytest.mark.parametrize("name", [field.name for field in fields(Randomisation) if field.name != "clean"])
def test_every_strength_does_something_and_none_nothing(photos: Tensor, name: str):
    assert torch.equal(changed(photos, Randomisation()), photos)
    assert (changed(photos, Randomisation(**{name: 1.0})) - photos).abs().amax((1, 2, 3)).median() > 0.02
    clean = changed(photos, Randomisation(**{name: 1.0}, clean=1.0))
    assert torch.equal(clean, photos)


def test_shares_of_what_is_worn_are_kept(photos: Tensor):
    worn = changed(photos, Randomisation(glasses=0.25))
    assert int((worn != photos).flatten(1).any(1).sum()) == COUNT // 4


def test_skin_can_still_be_told(photos: Tensor):
    """The darkest and the lightest skin stay apart on average in any light, and channels move by a sixth at most."""
    skins = torch.tensor([[0.33, 0.21, 0.16], [0.99, 0.89, 0.82]])[:, None, None, None]
    light = replace(Randomisation(), light=1.0, shadows=1.0, exposure=1.0, white_balance=1.0)
    dark, pale = (changed(skin.expand(64, 32, 32, 3).reshape(64, 32, 32, 3), light) for skin in skins)
    assert dark.mean((1, 2, 3)).max() < pale.mean((1, 2, 3)).min()
    balanced = changed(skins[1].expand(64, 32, 32, 3), Randomisation(white_balance=1.0)).mean((1, 2))
    ratio = balanced / balanced.mean(1, keepdim=True) / (skins[1, 0, 0] / skins[1].mean())
    assert (ratio - 1).abs().max() < 0.17


def test_jpeg_keeps_more_the_higher_its_quality(photos: Tensor):
    pictures = photos.movedim(-1, 1)
    errors = [(jpeg(pictures, torch.full((COUNT,), q)) - pictures).square().mean().item() for q in (10.0, 50.0, 95.0)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3


def test_strengths_come_from_the_configuration():
    assert isinstance(SHIPPED, Randomisation)
    assert all(0 <= getattr(SHIPPED, name) <= 1 for name in SHARES)
    read = settings.read(settings.HERE / "face.toml", ["options.randomise.light=0.5"]).options
    assert isinstance(read, FaceOptions)
    assert read.randomise == replace(SHIPPED, light=0.5)
    with pytest.raises(TrainingError, match="unknown key 'fog'"):
        settings.read(settings.HERE / "face.toml", ["options.randomise.fog=1.0"])


def test_varied_photos_keep_the_person_and_repeat():
    photo = still(person(3), 1)
    assert varied(photo, 0.0) is photo
    once, again = varied(photo, 1.0), varied(photo, 1.0)
    assert once.person is photo.person
    assert once.scene.hair.name == photo.scene.hair.name
    assert once.scene.hair.style == photo.scene.hair.style
    assert (once.pose == photo.pose).all()
    assert once.scene.hair.top == again.scene.hair.top != photo.scene.hair.top
    assert once.scene.background.shapes.shape == (DISCS, 3)
    assert varied(photo, 1e-9).scene.background.shapes.shape == (DISCS, 3), "drawn in one batch with the others"
