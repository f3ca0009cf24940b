"""The attribute regressor: reads frames, whatever a video model's flaws, and travels as a small file."""

import math
from pathlib import Path

import pytest
import torch

from fantasyid_core.errors import WeightsError
from fantasyid_core.meters import attribute_regressor as attributes
from fantasyid_core.meters.attribute_regressor import UNKNOWN, AttributeRegressor, AttributeTargets

COLOURS = 4


@pytest.fixture
def regressor() -> AttributeRegressor:
    torch.manual_seed(0)
    return AttributeRegressor(COLOURS)


def scenes(count: int) -> tuple[torch.Tensor, AttributeTargets]:
    """Frames (count, 3, 160, 160) of a painted disc on a coloured ground over a coloured band, and what they show."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.9], [0.9, 0.9, 0.2]])
    centre = 50 + 60 * torch.rand(count, 2, generator=generator)
    background = torch.randint(COLOURS, (count,), generator=generator)
    shirt = torch.randint(COLOURS, (count,), generator=generator)
    y, x = torch.meshgrid(torch.arange(160.0), torch.arange(160.0), indexing="ij")
    dx, dy = (x - centre[:, :1, None]) / 60, (y - centre[:, 1:, None]) / 60
    disc = (dx.square() + dy.square() < 0.25)[:, None]
    paint = torch.stack([0.5 + dx, 0.5 + dy, dx * 0 + 0.5], 1)  # so that places on it can be told apart
    frames = colours[background][..., None, None].expand(-1, -1, 160, 160).clone()
    frames[:, :, 130:] = colours[shirt][..., None, None]
    frames = torch.where(disc, paint, frames)
    angle = torch.arange(68) / 68 * 2 * math.pi
    landmarks = centre[:, None] + 20 * torch.stack([angle.cos(), angle.sin()], -1)
    pose = torch.cat([centre - 80, torch.zeros(count, 1)], 1)
    expression = torch.zeros(count, 50)
    return frames, AttributeTargets(attributes.to_unit(landmarks, 160), pose, expression, shirt, background)


def test_it_is_small(regressor: AttributeRegressor):
    assert sum(p.numel() for p in regressor.parameters()) <= 1_500_000


def test_it_learns_a_few_frames_by_heart():
    torch.manual_seed(0)
    regressor = AttributeRegressor(COLOURS, widths=(16, 24, 32, 48))
    frames, targets = scenes(6)
    optimiser = torch.optim.AdamW(regressor.parameters(), 3e-3, weight_decay=0)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 80)
    for _ in range(80):
        optimiser.zero_grad()
        attributes.loss(regressor(frames), targets).backward()
        optimiser.step()
        slower.step()
    reading = attributes.read_attributes(regressor.eval(), frames.movedim(1, -1))
    assert (reading.landmarks - targets.landmarks).abs().mean() < 4 / 160
    assert (reading.pose - targets.pose).abs().mean() < 0.5 * targets.pose.abs().mean()
    assert torch.equal(reading.shirt.argmax(1), targets.shirt)
    assert torch.equal(reading.background.argmax(1), targets.background)


def test_what_is_not_known_teaches_nothing(regressor: AttributeRegressor):
    frames, targets = scenes(2)
    unknown = torch.full((2,), UNKNOWN)
    outside = AttributeTargets(targets.landmarks - 5, targets.pose, targets.expression, unknown, unknown)
    parts = attributes.losses(regressor(frames), outside)
    assert parts["landmarks"] == parts["shirt"] == parts["background"] == 0
    assert parts["pose"] > 0


def test_frames_of_any_size_are_read_in_batches(regressor: AttributeRegressor):
    frames = scenes(3)[0].movedim(1, -1)
    whole = attributes.read_attributes(regressor, frames)
    parts = attributes.read_attributes(regressor, frames, batch=2)
    torch.testing.assert_close(whole.landmarks, parts.landmarks)
    assert attributes.read_attributes(regressor, torch.rand(1, 90, 120, 3)).landmarks.shape == (1, 68, 2)
    assert ((whole.landmarks > 0) & (whole.landmarks < 1)).all()


def test_landmarks_keep_their_precision_under_autocast(regressor: AttributeRegressor):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        landmarks = regressor(scenes(2)[0]).landmarks
    assert landmarks.dtype == torch.float32
    assert not torch.equal(landmarks, landmarks.bfloat16().float())


def test_degraded_frames_stay_recognisable_and_repeat_by_seed():
    frames, _ = scenes(32)
    once = attributes.degrade(frames, torch.Generator().manual_seed(3))
    assert torch.equal(once, attributes.degrade(frames, torch.Generator().manual_seed(3)))
    change = (once - frames).abs().mean((1, 2, 3))
    assert change.min() == 0  # some are left alone
    assert 0.005 < change.max() < 0.2
    assert once.aminmax()[0] >= 0
    assert once.aminmax()[1] <= 1


def test_it_is_saved_in_half_precision_and_read_back(regressor: AttributeRegressor, tmp_path: Path):
    regressor.thresholds, regressor.framing = {"brows": 0.2}, (5.0, 0.4)
    regressor.save(tmp_path / "judge")
    assert (tmp_path / "judge" / "judge.safetensors").stat().st_size < 3_000_000
    again = attributes.load(tmp_path / "judge")
    assert (again.thresholds, again.framing) == ({"brows": 0.2}, (5.0, 0.4))
    frames = scenes(2)[0].movedim(1, -1)
    a, b = attributes.read_attributes(regressor.eval(), frames), attributes.read_attributes(again, frames)
    torch.testing.assert_close(a.landmarks, b.landmarks, atol=2e-3, rtol=0)


@pytest.mark.parametrize("config", ['{"colours": 5}', '{"colors": 4}', '{"colours": 4, "widths": [1, 2]}'])
def test_another_network_is_refused(regressor: AttributeRegressor, tmp_path: Path, config: str):
    regressor.save(tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(WeightsError):
        attributes.load(tmp_path)
