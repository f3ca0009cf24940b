"""Fit the head pose networks on rendered people: `python -m tools.assets.fit_head_pose` (15 minutes of one core).

For the crops 8000 TRAIN people, aligned by their true landmarks and shifted, scaled and turned as if those were a
little off; for the landmarks 2000 others, as the detector finds them. Every person has a pose drawn evenly from ±80°
yaw, ±35° pitch and ±35° roll. Everything is seeded: the same machine and torch give the same file again.
"""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from fantasyid_core.detection import head_pose, yunet
from fantasyid_core.detection.multiscale import search
from fantasyid_lab.people.clip import Clip, still
from fantasyid_lab.people.person import TRAIN, person
from fantasyid_lab.people.render import render

log = logging.getLogger("fit_head_pose")
RANGE = (80.0, 35.0, 35.0)
_RENDERED, _BATCH = 32, 64
_PHOTO = 192  # px
_NOISE = 0.03  # of the landmarks' spread
# Standard deviations of what aligned crops are off by: x and y in sides, logarithm of the scale, degrees.
_OFF = (0.03, 0.03, 0.08, 6.0)


def posed(seed: int, limits: tuple[float, float, float] = RANGE) -> Clip:
    """A still of the person of that seed with yaw, pitch and roll drawn evenly within ± `limits`."""
    rng = np.random.default_rng([seed, 77])
    pose = rng.uniform(-1, 1, (1, 3)) * limits
    return replace(still(person(seed), seed), pose=pose.astype(np.float32))


def samples(seeds: range, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Crops (N, 64, 64, 3) float 0…1 and what is true of them, (N, 3) degrees of yaw, pitch and roll in the crop."""
    crops, poses = [], []
    for start in range(0, len(seeds), _RENDERED):
        batch = seeds[start : start + _RENDERED]
        off = np.random.default_rng([batch.start, 78]).normal(0, 1, (len(batch), 1, 4)) * _OFF
        drawn = render([posed(seed) for seed in batch], head_pose.SIZE, device, torch.from_numpy(off).float())
        crops.append(drawn.frames[:, 0].cpu())
        poses.append(drawn.pose[:, 0].cpu())
    return torch.cat(crops), torch.cat(poses)


def spoilt(grey: Tensor, step: int, generator: torch.Generator) -> Tensor:
    """Crops (N, 1, S, S) moved a little, in other light, blurred, covered in part and noisy, as photos are."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    count, size = len(grey), grey.shape[-1]
    place = torch.zeros(count, 2, 3)
    place[:, 0, 0] = place[:, 1, 1] = 1 + normal(count) * 0.06
    place[:, :, 2] = normal(count, 2) * 0.04
    grid = F.affine_grid(place, list(grey.shape), align_corners=False)
    grey = F.grid_sample(grey, grid, padding_mode="border", align_corners=False)
    grey = grey.clamp(1e-3, 1) ** (normal(count, 1, 1, 1) * 0.3).exp()
    if step % 3 == 0:
        low = int(torch.randint(size // 3, size, (1,), generator=generator))
        low = F.interpolate(grey, (low, low), mode="bilinear", antialias=True)
        grey = F.interpolate(low, (size, size), mode="bilinear")
    if step % 2 == 0:
        x, y, width, height = (torch.rand(4, generator=generator) * size).int().tolist()
        shade = float(torch.rand(1, generator=generator))
        grey[: count // 4, :, y : y + 4 + height // 3, x : x + 4 + width // 3] = shade
    return grey + normal(*grey.shape) * 0.03 * torch.rand(count, 1, 1, 1, generator=generator)


def detected(seeds: range, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Landmarks (N, 5, 2) px as the detector finds them in photos of people, where it does, and true poses (N, 3)."""
    landmarks, poses = [], []
    for start in range(0, len(seeds), _RENDERED):
        rendered = render([posed(seed) for seed in seeds[start : start + _RENDERED]], _PHOTO, device)
        faces = search(rendered.frames[:, 0], yunet.detect, 0.5)
        for own, true, pose in zip(faces, rendered.landmarks[:, 0, :5].cpu(), rendered.pose[:, 0].cpu(), strict=True):
            distance = (own.landmarks - true).norm(dim=-1).mean(-1)
            if len(own) and distance.min() < 0.3 * torch.pdist(true).max():
                landmarks.append(own.landmarks[distance.argmin()])
                poses.append(pose)
    return torch.stack(landmarks), torch.stack(poses)


def fit(crops: tuple[Tensor, Tensor], landmarks: tuple[Tensor, Tensor], steps: int) -> head_pose.PoseNet:
    """The networks from samples (what is seen, what is true); least absolute error, each on its own."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = head_pose.PoseNet()
    grey = head_pose.grey(crops[0])

    def crop_loss(step: int) -> Tensor:
        pick = torch.randint(len(grey), (_BATCH,), generator=generator)
        mirrored = torch.rand(_BATCH, generator=generator) < 0.5
        true = torch.where(mirrored[:, None], crops[1][pick] * head_pose.MIRROR, crops[1][pick])
        inputs = torch.where(mirrored[:, None, None, None], grey[pick].flip(3), grey[pick])
        return (network.of_crops(spoilt(inputs, step, generator)) - true).abs().mean()

    def landmark_loss(step: int) -> Tensor:
        pick = torch.randint(len(landmarks[0]), (512,), generator=generator)
        points = landmarks[0][pick]
        spread = (points - points.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt()[:, None, None]
        noise = torch.rand(len(points), 1, 1, generator=generator) * _NOISE
        points = points + torch.randn(points.shape, generator=generator) * spread * noise
        one, mirrored = network.of_landmarks(points), network.of_landmarks(head_pose.mirror(points))
        return ((one + mirrored * head_pose.MIRROR) / 2 - landmarks[1][pick]).abs().mean()

    for part, loss_of in ((network.crop_net, crop_loss), (network.landmark_net, landmark_loss)):
        optimiser = torch.optim.AdamW(part.parameters(), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
        for step in range(steps):
            loss = loss_of(step)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if step % 500 == 0:
                log.info("step %d: mean error %.2f°", step, loss.detach())
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=8000, help="TRAIN people for the crops; a quarter for landmarks")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--device", default="cpu", help="where people are rendered")
    parser.add_argument("--out", type=Path, default=head_pose.WEIGHTS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    crops = samples(TRAIN[: arguments.people], arguments.device)
    landmarks = detected(TRAIN[arguments.people : arguments.people * 5 // 4], arguments.device)
    network = fit(crops, landmarks, arguments.steps)
    save_file({name: value.half() for name, value in network.state_dict().items()}, arguments.out)


if __name__ == "__main__":
    main()
