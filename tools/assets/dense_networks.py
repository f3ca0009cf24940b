"""Train the networks that read 478 dense landmarks, pose and shape: `python -m tools.assets.dense_networks`.

TRAIN people are rendered, six photos each, quiet, speaking, turned as far as ±65° of yaw and ±28° of pitch and roll,
with lenses from near to far, 224 to 512 px large, in other light, less sharp and noisy, and read by the landmark
network. A pose network learns the true turns, a shape network the true shapes by their vertices' distances after shift,
turn and scale. Where the points are on nano's head (`tools.assets.dense_points`) goes into the file as well. On a GPU
9,400 people take some 5 minutes with `--device cuda --workers 12`, and training one; a CPU core does a photo a second.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from fantasyid_core.detection import dense_features, dense_landmarks, landmark_network, yunet
from fantasyid_core.detection.dense_pose import PoseNetwork
from fantasyid_core.reconstruction import flame
from fantasyid_core.reconstruction.dense_shape import ShapeNetwork
from fantasyid_core.reconstruction.landmark_fit import at_landmarks
from fantasyid_lab.people.clip import Clip, clip, still
from fantasyid_lab.people.head import Head
from fantasyid_lab.people.head import load as load_head
from fantasyid_lab.people.person import TRAIN, person
from fantasyid_lab.people.render import render
from tools.assets.dense_points import MODEL

log = logging.getLogger("dense_networks")

FIRST = 3000  # of the TRAIN people; those before it told where the points are
SIZES = (512, 384, 256, 512, 224, 320)
"""Px of a person's photos."""
LIMITS = (65.0, 28.0, 28.0)
COMPONENTS, ERRORS = 200, 20
_PIXELS = 128 * 160**2  # rendered at a time on a GPU
_GROUP = 100  # people
_DETECTED = 256  # px, at most, of what is searched for faces
_NOISE, _DROPOUT = 0.1, {"pose": 0.05, "shape": 0.1}
_COUNTS = (1, 1, 2, 3, 6)  # photos that the shape network sees at a time
_FACE = ((-0.1, -0.13, 0.0), (0.1, 0.06, 1.0))  # metres: from the chin to the brows, the front half of the head
_OTHER_SHAPES = 0.03  # how much a shape counts that the face does not show, by one that it does


@dataclass(frozen=True, eq=False)
class Readings:
    """M photos of people.

    Attributes:
        seed: (M,) of the people.
        points: (M, 478, 3) px as read, in the network's squares.
        pose: (M, 3) degrees of yaw, pitch and roll there.
    """

    seed: Tensor
    points: Tensor
    pose: Tensor


def photo(seed: int, number: int) -> Clip:
    """One of six photos of a person."""
    who = person(seed)
    rng = np.random.default_rng([seed, number, 99])
    one = still(who, number)
    if number in (3, 5):
        one = replace(one, expression=clip(who, seed + number, 9).expression[-1:])
    if number >= 4:
        one = replace(one, pose=(rng.uniform(-1, 1, (1, 3)) * LIMITS).astype(np.float32))
    if number in (2, 5):
        camera = one.camera.copy()
        camera[:, 3] = rng.uniform(0.45, 2.5)
        one = replace(one, camera=camera)
    return one


def batches(people: int, on_gpu: bool) -> list[list[tuple[int, int]]]:
    """Seeds and numbers of photos of one size each."""
    found = []
    for first in range(FIRST, FIRST + people, _GROUP):
        seeds = TRAIN[first : min(first + _GROUP, FIRST + people)]
        for number, size in enumerate(SIZES):
            step = max(1, _PIXELS // size**2) if on_gpu else 4
            photos = [(seed, number) for seed in seeds]
            found += [photos[i : i + step] for i in range(0, len(photos), step)]
    return found


def spoilt(frames: Tensor, seed: int) -> Tensor:
    """Frames (N, S, S, 3) in other light, half of the batches less sharp, noisy, as photos are."""
    generator = torch.Generator().manual_seed(seed)
    count, size = frames.shape[:2]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(frames)

    light = frames.clamp(1e-3, 1) ** (0.25 * normal(count, 1, 1, 1)).exp()
    light = light * (1 + 0.06 * normal(count, 1, 1, 3)) + 0.03 * normal(count, 1, 1, 1)
    if seed % 2 == 0:
        low = int(size * (0.3 + 0.7 * float(torch.rand(1, generator=generator))))
        small = F.interpolate(light.movedim(-1, 1), (low, low), mode="bilinear", antialias=True)
        light = F.interpolate(small, (size, size), mode="bilinear").movedim(1, -1)
    strength = 0.04 * torch.rand(count, 1, 1, 1, generator=generator).to(frames) ** 2
    return (light + strength * normal(*frames.shape)).clamp(0, 1)


@torch.no_grad()
def read(photos: list[tuple[int, int]], number: int, device: str) -> Readings | None:
    """Render photos of one size and read them; those in which no face is found are left out."""
    size = SIZES[photos[0][1]]
    clips = [photo(*each) for each in photos]
    frames = spoilt(render(clips, size, device).frames[:, 0], number)
    small = frames.movedim(-1, 1)
    if size > _DETECTED:
        small = F.interpolate(small, (_DETECTED, _DETECTED), mode="bilinear", antialias=True)
    scale = size / small.shape[-1]
    faces = yunet.detect(small.movedim(1, -1), 0.5)
    found = [i for i, own in enumerate(faces) if len(own)]
    if not found:
        return None
    five = torch.stack([faces[i].landmarks[0] for i in found]) * scale + (scale - 1) / 2
    squares = dense_landmarks.first_squares(five).to(frames)
    network = landmark_network.load(frames.device)
    points = frames.new_zeros(0)
    for again in (True, False):
        crops = torch.stack([dense_landmarks.cut(frames[i], own) for i, own in zip(found, squares, strict=True)])
        points = network(crops)[0]
        if again:
            linear, shift = squares[..., :2], squares[:, None, :, 2]
            flat = (points[..., :2] - 0.5 - shift) @ torch.linalg.inv(linear).mT
            squares = dense_landmarks.squares(flat)
    lean = torch.rad2deg(torch.atan2(squares[:, 1, 0], squares[:, 0, 0])).cpu()
    pose = torch.from_numpy(np.concatenate([clips[i].pose for i in found]))
    camera = torch.from_numpy(np.concatenate([clips[i].camera for i in found]))
    pose[:, 2] += camera[:, 4] + lean
    return Readings(torch.tensor([photos[i][0] for i in found]), points.cpu(), pose)


def _work(rank: int, workers: int, people: int, device: str, folder: str) -> None:
    torch.set_num_threads(1)
    todo = batches(people, device != "cpu")
    found = [own for i in range(rank, len(todo), workers) if (own := read(todo[i], i, device))]
    torch.save(
        [torch.cat([getattr(own, name) for own in found]) for name in ("seed", "points", "pose")], f"{folder}/{rank}"
    )


def read_all(people: int, workers: int, device: str, folder: Path) -> Readings:
    """Readings of all photos, in several processes, each of which leaves a file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = (workers, people, device, str(folder))
    if workers > 1:
        torch.multiprocessing.spawn(_work, arguments, workers)
    else:
        _work(0, *arguments)
    parts = [torch.load(folder / str(rank), weights_only=True) for rank in range(workers)]
    return Readings(*(torch.cat(own) for own in zip(*parts, strict=True)))


class Basis:
    """What features are made of: mean, components and deviations of normalised points, and their mirror."""

    def __init__(self, points: Tensor):
        level = dense_features.normalise(points).flatten(1)
        self.mean = level.mean(0)
        middle = (level - self.mean).double()
        strength, ways = torch.linalg.eigh(middle.mT @ middle / len(level))
        self.components = ways.flip(1)[:, :COMPONENTS].float().half().float()  # as they are stored
        self.deviations = strength.flip(0)[:COMPONENTS].clamp(min=1e-12).sqrt().float()
        places = self.mean.unflatten(0, (-1, 3))
        self.pairs = torch.cdist(places * places.new_tensor(dense_features.MIRROR), places).argmin(1)

    def features(self, points: Tensor, mirrored: bool) -> Tensor:
        """As `dense_features.features`, (M, 200)."""
        level = dense_features.normalise(points)
        if mirrored:
            level = level[:, self.pairs] * level.new_tensor(dense_features.MIRROR)
        return (level.flatten(1) - self.mean) @ self.components / self.deviations


def mirrored_shapes(head: Head) -> Tensor:
    """(100, 100): codes of shapes → of the same shapes in a mirror, as columns."""
    flip = head.canonical.new_tensor(dense_features.MIRROR)
    other = torch.cdist(head.canonical * flip, head.canonical).argmin(1)
    ways = head.shape_basis.flatten(0, 1)
    return torch.linalg.lstsq(ways, (head.shape_basis[other] * flip[:, None]).flatten(0, 1)).solution


def face_distances() -> Tensor:
    """(100, 100) lower triangle L: what a shape's error e moves of the face after shift, turn and scale, as |e L|."""
    model = flame.load(MODEL)
    low, high = torch.tensor(_FACE)
    face = ((model.template > low) & (model.template < high)).all(1)
    ways = 1000 * model.shape_basis[face][..., :100].flatten(0, 1)
    places = model.template[face] - model.template[face].mean(0)
    x, y, z = places.unbind(-1)
    nil, one = torch.zeros_like(x), torch.ones_like(x)
    moves = ((one, nil, nil), (nil, one, nil), (nil, nil, one), (x, y, z), (nil, -z, y), (z, nil, -x), (-y, x, nil))
    free, _ = torch.linalg.qr(torch.stack([torch.stack(move, -1).flatten() for move in moves], -1))
    left = ways - free @ (free.mT @ ways)
    normal = left.mT @ left
    normal = normal / normal.diagonal().mean() + _OTHER_SHAPES * torch.eye(len(normal))
    return torch.linalg.cholesky(normal.double()).float()


def _noisy(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + _NOISE * torch.randn(x.shape, generator=generator, device=x.device)


def _trained(network: nn.Module, losses: Iterator[Tensor], steps: int) -> dict[str, Tensor]:
    """The network's state, float16, after as many steps of AdamW with one cycle of the rate."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps, pct_start=0.05)
    for step in range(steps):
        loss = next(losses)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % (steps // 5 or 1) == 0:
            log.info("%s, step %d: %.4f", type(network).__name__, step, loss.item())
    return {name: value.half().cpu() for name, value in network.state_dict().items()}


def _with_dropout(network: nn.Module, share: float) -> list[torch.utils.hooks.RemovableHandle]:
    """Dropout after every SiLU while training; the handles take it off."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.SiLU)]
    return [layer.register_forward_hook(lambda _, __, out: F.dropout(out, share)) for layer in layers]


def train_pose(x: Tensor, mirrored: Tensor, pose: Tensor, steps: int) -> dict[str, Tensor]:
    """Features (M, 200), plain and mirrored, and poses (M, 3) of heads whose eyes are level → the network's state."""
    torch.manual_seed(0)
    network = PoseNetwork().to(x)
    generator = torch.Generator(x.device).manual_seed(0)
    flip = pose.new_tensor([-1, 1, -1])

    def losses() -> Iterator[Tensor]:
        while True:
            pick = torch.randint(len(x), (1024,), generator=generator, device=x.device)
            turn = (torch.rand(1024, generator=generator, device=x.device) < 0.5)[:, None]
            seen, true = torch.where(turn, mirrored[pick], x[pick]), torch.where(turn, pose[pick] * flip, pose[pick])
            yield (network(_noisy(seen, generator)) - true).abs().mean()

    handles = _with_dropout(network, _DROPOUT["pose"])
    state = _trained(network, losses(), steps)
    for handle in handles:
        handle.remove()
    return state


def train_shape(x: Tensor, mirrored: Tensor, seed: Tensor, mirror: Tensor, steps: int) -> dict[str, Tensor]:
    """Features (M, 200), plain and mirrored, of people (M,) → the network's state."""
    torch.manual_seed(0)
    network = ShapeNetwork().to(x)
    generator = torch.Generator(x.device).manual_seed(0)
    order = seed.argsort(stable=True)
    people, counts = seed[order].unique_consecutive(return_counts=True)
    starts, codes = counts.cumsum(0) - counts, torch.stack([person(int(own)).shape_code for own in people]).to(x)
    distances, counts, starts, order = face_distances().to(x), counts.to(x), starts.to(x.device), order.to(x.device)
    places = torch.arange(len(SIZES), device=x.device)

    def losses() -> Iterator[Tensor]:
        draw = torch.Generator().manual_seed(0)
        while True:
            count = _COUNTS[int(torch.randint(len(_COUNTS), (1,), generator=draw))]
            size = 512 if count < 3 else 256
            who = torch.randint(len(people), (size,), generator=generator, device=x.device)
            missing = places >= counts[who][:, None]
            shuffled = torch.rand(size, len(SIZES), generator=generator, device=x.device) + 9 * missing
            pick = shuffled.argsort(1)[:, :count]
            pick = torch.where(pick < counts[who][:, None], pick, 0)  # fewer photos than asked for: one again
            rows = order[starts[who][:, None] + pick]
            turn = (torch.rand(size, generator=generator, device=x.device) < 0.5)[:, None]
            seen = torch.where(turn[..., None], mirrored[rows], x[rows])
            true = torch.where(turn, codes[who] @ mirror.mT, codes[who])
            share = x.new_full((size, count), 1 / count)
            yield ((network(_noisy(seen, generator), share) - true) @ distances).square().mean()

    handles = _with_dropout(network, _DROPOUT["shape"])
    state = _trained(network, losses(), steps)
    for handle in handles:
        handle.remove()
    return state


def arrays(readings: Readings, steps: int, device: str) -> dict[str, Tensor]:
    """All of the file."""
    model, basis = flame.load(MODEL), Basis(readings.points)
    assert model.dense_landmarks is not None
    assert model.dense_deviations is not None
    assert model.dense_errors is not None
    x, mirrored = (basis.features(readings.points, way).to(device) for way in (False, True))
    pose = readings.pose.clone()
    pose[:, 2] = torch.remainder(pose[:, 2] - dense_features.lean(readings.points) + 180, 360) - 180
    mirror = mirrored_shapes(load_head())
    found = {
        "mean": basis.mean,
        "components": basis.components.half(),
        "deviations": basis.deviations,
        "pairs": basis.pairs.to(torch.int16),
        "mirroredshapes": mirror.half(),
        "rest": at_landmarks(model.dense_landmarks, model.template),
        "shapes": at_landmarks(model.dense_landmarks, model.shape_basis[..., :100]).half(),
        "pointdeviations": model.dense_deviations,
        "pointerrors": model.dense_errors[..., :ERRORS].half(),
    }
    found |= {f"pose.{k}": v for k, v in train_pose(x, mirrored, pose.to(device), steps).items()}
    trained = train_shape(x, mirrored, readings.seed, mirror.to(device), steps)
    found |= {f"shape.{k}": v for k, v in trained.items()}
    return {name: value.contiguous() for name, value in found.items()}


def main() -> None:
    """Write the file and log its hash."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=9400)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--readings", type=Path, default=Path(".work") / "dense_readings")
    parser.add_argument("--out", type=Path, default=dense_features.WEIGHTS)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    readings = read_all(options.people, options.workers, options.device, options.readings)
    log.info("%d photos of %d people", len(readings.seed), len(readings.seed.unique()))
    save_file(arrays(readings, options.steps, options.device), options.out)
    log.info("%s: SHA-256 %s", options.out, hashlib.sha256(options.out.read_bytes()).hexdigest())


if __name__ == "__main__":
    main()
