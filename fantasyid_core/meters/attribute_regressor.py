"""The attribute regressor: a small network that reads landmarks, pose, expression and colours from frames.

It is trained on rendered frames of `fantasyid_lab.people` with their true labels, never on a model's output, so that
it can say what a generated video shows. It says nothing about who is in it: that is `embedding`'s.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..io.layout import save_tensors, write_json
from ..io.weights import configured, load_into, read, read_config

SIZE = 160
LANDMARKS, EXPRESSIONS = 68, 50
WIDTHS = (32, 48, 96, 128)  # channels at 1/2, 1/4, 1/8 and 1/16 of the frame
UNKNOWN = -1  # a colour that is not labelled
FRAMING = (6.5, 0.55)  # head and shoulders

_FILE = "judge.safetensors"
_LOCAL = 16  # features that are read around each landmark
_SHARP = 8  # on the logits of the heat maps: they start flat and must become peaks


@dataclass(frozen=True, eq=False)
class AttributeReading:
    """What the attribute regressor reads in B frames.

    Attributes:
        landmarks: (B, 68, 2) x y in 0…1 of the frame: (px + 0.5) / size, integer px being pixel centres.
        pose: (B, 3) yaw, pitch, roll in degrees, as `people` has them.
        expression: (B, 50) strengths of the expressions.
        shirt, background: (B, C) logits over the colours.
        heat: (B, 68, h, w) log-probabilities of the landmarks' places on a grid over the frame; `None` but in training.
    """

    landmarks: Tensor
    pose: Tensor
    expression: Tensor
    shirt: Tensor
    background: Tensor
    heat: Tensor | None = None


@dataclass(frozen=True, eq=False)
class AttributeTargets:
    """What B frames truly show: as `AttributeReading`, but shirt and background (B,) int64, `UNKNOWN` if not known."""

    landmarks: Tensor
    pose: Tensor
    expression: Tensor
    shirt: Tensor
    background: Tensor


def to_unit(landmarks_px: Tensor, size: int) -> Tensor:
    """Landmarks (…, 2) in px of a square frame → 0…1 of the frame."""
    return (landmarks_px + 0.5) / size


class Block(nn.Module):
    """Residual block of two 3 × 3 convolutions with group norms; the first may halve the picture."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(8, channels)
        same = stride == 1 and channels_in == channels
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.norm2(self.conv2(y)) + self.skip(x))


class AttributeRegressor(nn.Module):
    """Frames (B, 3, 160, 160) in 0…1 → `AttributeReading`.

    Landmarks are the centres of gravity of heat maps at a quarter of the frame. Pose and expression are read from the
    features around the landmarks, their layout and the whole picture; colours by attention over the frame.

    Args:
        colours: number of colour names.
        landmarks, expressions: numbers of either.
        widths: channels at 1/2, 1/4, 1/8 and 1/16 of the frame.
        thresholds: what a clip must be read with to show an action, see `adherence.thresholds`; nothing learned.
        framing: of the frames that it was trained on: how many eye distances wide, and how many the centre lies below
            the eyes.
    """

    def __init__(
        self,
        colours: int,
        landmarks: int = LANDMARKS,
        expressions: int = EXPRESSIONS,
        widths: Sequence[int] = WIDTHS,
        thresholds: Mapping[str, float] | None = None,
        framing: Sequence[float] = FRAMING,
    ):
        super().__init__()
        self.thresholds, self.framing = dict(thresholds or {}), tuple(framing)
        self.config = {
            "colours": colours,
            "landmarks": landmarks,
            "expressions": expressions,
            "widths": list(widths),
        }
        quarter, eighth, sixteenth = widths[1:]
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 5, 2, 2), nn.GroupNorm(8, widths[0]), nn.SiLU())
        self.stages = nn.ModuleList(
            nn.Sequential(Block(a, b, 2), *(Block(b, b) for _ in range(i > 0)))
            for i, (a, b) in enumerate(pairwise(widths))
        )
        fine = 64
        self.up_eighth = nn.Conv2d(sixteenth, eighth, 1)
        self.merge_eighth = Block(eighth, eighth)
        self.up_quarter = nn.Conv2d(eighth, fine, 1)
        self.side_quarter = nn.Conv2d(quarter, fine, 1)
        self.merge_quarter = Block(fine, fine)
        self.heat = nn.Conv2d(fine, landmarks, 1)
        self.local = nn.Conv2d(fine, _LOCAL, 1)
        face_inputs = landmarks * (_LOCAL + 2) + 5 + sixteenth
        self.face = nn.Sequential(nn.Linear(face_inputs, 128), nn.SiLU(), nn.Linear(128, 3 + expressions))
        self.colour_attention = nn.Conv2d(fine + 2, 2, 1)
        nn.init.zeros_(self.colour_attention.weight)
        with torch.no_grad():  # begin with shirts below and background above
            self.colour_attention.weight[:, -1, 0, 0] = torch.tensor([3.0, -3.0])
        self.colour = nn.ModuleList(
            nn.Sequential(nn.Linear(fine + 3, 64), nn.SiLU(), nn.Linear(64, colours)) for _ in range(2)
        )

    def forward(self, frames: Tensor) -> AttributeReading:
        x = self.stem(frames * 4 - 2)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        quarter, eighth, sixteenth = levels
        eighth = self.merge_eighth(eighth + F.interpolate(self.up_eighth(sixteenth), eighth.shape[2:]))
        fine = F.interpolate(self.up_quarter(eighth), quarter.shape[2:], mode="bilinear")
        fine = self.merge_quarter(fine + self.side_quarter(quarter))

        log_heat = (_SHARP * self.heat(fine).flatten(2).float()).log_softmax(-1)  # (B, 68, h·w)
        heat = log_heat.exp()
        # Not a matrix product: autocast would round it to bfloat16, which is half a pixel.
        landmarks = torch.stack([(heat * axis).sum(-1) for axis in _grid(fine).unbind(1)], -1)
        local_features = heat.to(fine.dtype) @ self.local(fine).flatten(2).transpose(1, 2)  # (B, 68, _LOCAL)
        layout, placement = _normalised(landmarks)
        features = torch.cat([local_features.flatten(1), layout.flatten(1), placement, sixteenth.mean((2, 3))], 1)
        pose, expression = self.face(features).float().split((3, self.config["expressions"]), 1)

        positions = (2 * _grid(fine) - 1).T.unflatten(1, fine.shape[2:]).to(fine.dtype).expand(len(fine), -1, -1, -1)
        attention = self.colour_attention(torch.cat([fine, positions], 1)).flatten(2).float().softmax(-1)  # (B, 2, h·w)
        colours = F.interpolate(frames, fine.shape[2:], mode="area").to(fine.dtype)
        pooled = attention.to(fine.dtype) @ torch.cat([fine, colours * 4 - 2], 1).flatten(2).transpose(1, 2)
        shirt, background = (head(pooled[:, i]).float() for i, head in enumerate(self.colour))
        heatmaps = log_heat.unflatten(2, fine.shape[2:]) if self.training else None
        return AttributeReading(landmarks, pose * 45, expression, shirt, background, heatmaps)

    def save(self, folder: Path) -> None:
        """Write `judge.safetensors` (float16) and `config.json` into `folder`, made if missing. Raises SaveError."""
        tensors = {name: x.detach().half().cpu().contiguous() for name, x in self.state_dict().items()}
        save_tensors(tensors, folder / _FILE)
        write_json(folder / "config.json", self.config | {"thresholds": self.thresholds, "framing": self.framing})


def load(folder: Path, device: torch.device | str = "cpu") -> AttributeRegressor:
    """The one that `AttributeRegressor.save` wrote into `folder`, in float32, for reading.

    Raises:
        WeightsMissingError, WeightsError: no such folder or file; damaged, or of another network.
    """
    with configured("attribute regressor"), torch.device("meta"):
        regressor = AttributeRegressor(**read_config(folder))
    # Files of before 28 November 2026 call the attention over the frame `look`.
    tensors = {re.sub(r"^look\.", "colour_attention.", name): x.float() for name, x in read(folder / _FILE).items()}
    load_into(regressor, tensors, what="attribute regressor")
    return regressor.eval().requires_grad_(False).to(device)


@torch.no_grad()
def read_attributes(regressor: AttributeRegressor, frames: Tensor, batch: int = 64) -> AttributeReading:
    """Frames (N, H, W, 3) in 0…1, of any size, squeezed to a square → what the regressor reads, on its device."""
    device = next(regressor.parameters()).device
    readings = []
    for part in frames.split(batch):
        part = part.to(device, torch.float32).movedim(-1, 1)
        if part.shape[2:] != (SIZE, SIZE):
            part = F.interpolate(part, (SIZE, SIZE), mode="bilinear", antialias=True)
        readings.append(regressor(part))
    names = [field.name for field in fields(AttributeTargets)]
    return AttributeReading(*(torch.cat([getattr(reading, name) for reading in readings]) for name in names))


def losses(reading: AttributeReading, targets: AttributeTargets) -> dict[str, Tensor]:
    """Scalars by name, weighted so that their sum is to be minimised. Landmarks outside of the frame do not count."""
    inside = ((targets.landmarks > 0) & (targets.landmarks < 1)).all(-1, keepdim=True)
    error = F.smooth_l1_loss(reading.landmarks, targets.landmarks, beta=0.01, reduction="none")
    count = inside.sum().clamp(min=1)
    found = {} if reading.heat is None else {"heat": 0.3 * _heat_loss(reading.heat, targets.landmarks, inside)}
    return found | {
        "landmarks": 25 * torch.where(inside, error, 0).sum() / count,
        "pose": 0.3 * F.smooth_l1_loss(reading.pose, targets.pose, beta=2.0),
        # Squared: actions are rare, so that what is least wrong in absolute terms of a faint one is "never".
        "expression": 40 * F.mse_loss(reading.expression, targets.expression),
        "shirt": 0.3 * _colour_loss(reading.shirt, targets.shirt),
        "background": 0.3 * _colour_loss(reading.background, targets.background),
    }


def loss(reading: AttributeReading, targets: AttributeTargets) -> Tensor:
    """What training minimises: the sum of `losses`."""
    return reduce(torch.add, losses(reading, targets).values())


def degrade(frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Frames (B, 3, H, W) as a video model would spoil them, each in its own way: the labels stay true.

    Detail is lost (as in an autoencoder), white and blotchy noise, exposure, contrast, saturation and a slight tint
    change. Hues stay what they are called. A quarter of the frames is left alone.

    Args:
        generator: on the frames' device; the global one of that device by default.
    """
    b, _, height, width = frames.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        drawn = torch.rand((b, *(shape or (1, 1, 1))), generator=generator, device=frames.device, dtype=frames.dtype)
        return low + (high - low) * drawn

    def noise(h: int, w: int) -> Tensor:
        return torch.randn((b, 3, h, w), generator=generator, device=frames.device, dtype=frames.dtype)

    x = frames
    for factor in (2, 4):  # part of the detail at either scale, squared so that most frames keep most of it
        low = F.interpolate(F.avg_pool2d(x, factor), (height, width), mode="bilinear")
        x = x + (low - x) * uniform(0, 1).square() * (1.0 if factor == 2 else 0.6)
    x = x + noise(height, width) * uniform(0, 0.2).square()
    x = x + F.interpolate(noise(height // 16, width // 16), (height, width), mode="bicubic") * uniform(0, 0.22).square()
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * uniform(0.85, 1.2)
    middle = x.mean((1, 2, 3), keepdim=True)
    x = middle + (x - middle) * uniform(0.88, 1.12)
    x = x * uniform(0.9, 1.1) * uniform(0.97, 1.03, 3, 1, 1)
    return torch.where(uniform(0, 1) < 0.25, frames, x).clamp(0, 1)


def _grid(like: Tensor) -> Tensor:
    """(h·w, 2) x y of the cells' centres of a map (B, C, h, w), in 0…1."""
    h, w = like.shape[2:]
    y = (torch.arange(h, device=like.device, dtype=torch.float32) + 0.5) / h
    x = (torch.arange(w, device=like.device, dtype=torch.float32) + 0.5) / w
    return torch.stack([x.expand(h, w), y[:, None].expand(h, w)], -1).flatten(0, 1)


def _normalised(landmarks: Tensor) -> tuple[Tensor, Tensor]:
    """Landmarks (B, N, 2) → their layout without place and size (B, N, 2), and place, size and slope (B, 5)."""
    centre = landmarks.mean(1, keepdim=True)
    centred = landmarks - centre
    size = centred.square().sum(-1).mean(1).sqrt().clamp(min=1e-3)[:, None, None]
    eyes = (landmarks[:, 1] - landmarks[:, 0]) / size[:, 0]  # the first two landmarks are the eyes
    return centred / size, torch.cat([centre[:, 0], size[:, 0], eyes], 1)


def _heat_loss(log_heat: Tensor, landmarks: Tensor, inside: Tensor) -> Tensor:
    """Cross-entropy of the cell that holds each landmark: centres of gravity alone learn slowly from a flat map."""
    h, w = log_heat.shape[2:]
    cell = (landmarks * landmarks.new_tensor([w, h])).long()
    cell = cell[..., 1].clamp(0, h - 1) * w + cell[..., 0].clamp(0, w - 1)
    each = -log_heat.flatten(2).gather(2, cell[..., None])
    return torch.where(inside, each, 0).sum() / inside.sum().clamp(min=1)


def _colour_loss(logits: Tensor, colour: Tensor) -> Tensor:
    known = colour != UNKNOWN
    each = F.cross_entropy(logits, colour.clamp(min=0), reduction="none")
    return torch.where(known, each, 0).sum() / known.sum().clamp(min=1)
