"""Fit the head pose network on rendered people: `python -m tools.fit_head_pose` (one CPU core: about half an hour).

Every sample is one rendered TRAIN person with a pose drawn evenly from ±80° yaw, ±35° pitch and ±35° roll, as the
detector finds the landmarks in the picture; those it misses or puts elsewhere are left out. Seeds are fixed: the same
machine gives the same file again.
"""

import argparse
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fantasyid_core import head_pose, yunet
from fantasyid_core.people.clip import Clip, still
from fantasyid_core.people.person import TRAIN, person
from fantasyid_core.people.render import render
from fantasyid_core.search import search

log = logging.getLogger("fit_head_pose")
RANGE = (80.0, 35.0, 35.0)
_BATCH = 16
_NOISE = 0.02  # of the landmarks' spread
_STEPS = 6000


def posed(seed: int, limits: tuple[float, float, float] = RANGE) -> Clip:
    """A still of the person of that seed with yaw, pitch and roll drawn evenly within ± `limits`."""
    rng = np.random.default_rng([seed, 77])
    return replace(still(person(seed), seed), pose=rng.uniform(-1, 1, (1, 3)).astype(np.float32) * np.float32(limits))


def detected(
    seeds: range, limits: tuple[float, float, float] = RANGE, device: str = "cpu"
) -> Iterator[tuple[int, Tensor | None, Tensor]]:
    """For each seed its landmarks (5, 2) px as found, or None, and its true pose (3,) in degrees."""
    for start in range(0, len(seeds), _BATCH):
        batch = seeds[start : start + _BATCH]
        drawn = render([posed(seed, limits) for seed in batch], size=192, device=device)
        for seed, rows, true, pose in zip(
            batch,
            search(drawn.frames[:, 0], yunet.find, 0.5),
            drawn.landmarks[:, 0, :5].cpu(),
            drawn.pose[:, 0].cpu(),
            strict=True,
        ):
            found = rows[:, 4:14].reshape(-1, 5, 2)
            apart = (found - true).norm(dim=-1).mean(-1)
            near = len(found) and float(apart.min()) < 0.3 * float((true - true.mean(0)).norm(dim=-1).max() * 2)
            yield seed, found[apart.argmin()] if near else None, pose


def fit(landmarks: Tensor, poses: Tensor, seed: int = 0) -> head_pose.PoseNet:
    """The network (float32) from landmarks (N, 5, 2) px and poses (N, 3) in degrees; least absolute error."""
    torch.manual_seed(seed)
    network = head_pose.PoseNet()
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=_STEPS)
    for step in range(_STEPS):
        pick = torch.randint(len(landmarks), (512,))
        points, true = landmarks[pick], poses[pick]
        spread = (points - points.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt()[:, None, None]
        points = points + torch.randn_like(points) * spread * _NOISE * torch.rand(len(points), 1, 1)
        loss = (head_pose.estimate(network, points) - true).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 1000 == 0:
            log.info("step %d: mean error %.2f°", step, float(loss))
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=4000, help="how many TRAIN people to render")
    parser.add_argument("--samples", type=Path, help="keep the samples in this file, or take them from it")
    parser.add_argument("--out", type=Path, default=head_pose.WEIGHTS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.samples and arguments.samples.is_file():
        samples = load_file(arguments.samples)
    else:
        kept = [(points, pose) for _, points, pose in detected(TRAIN[: arguments.people]) if points is not None]
        log.info("%d of %d people were found", len(kept), arguments.people)
        samples = {"landmarks": torch.stack([p for p, _ in kept]), "poses": torch.stack([p for _, p in kept])}
        if arguments.samples:
            save_file(samples, arguments.samples)
    network = fit(samples["landmarks"], samples["poses"])
    save_file(network.state_dict(), arguments.out)


if __name__ == "__main__":
    main()
