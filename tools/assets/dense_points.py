"""Find where the head of the synthetic people has the 478 dense landmarks: `python -m tools.assets.dense_points`.

TRAIN people are rendered, 500 as in photos and 240 turned as far as ±60° of yaw and ±25° of pitch and roll, and read by
the network. A point is then the place on the surface that is nearest in the mean to what was read where it faces the
camera. What is left, once shift, turn and scale of each photo are out, says how far off the points are: in the mean, by
themselves, and together, as principal components. All goes into FantasyID-nano's face model, whose other arrays stay as
they are. About a quarter of an hour of one CPU core.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fantasyid_core.detection import dense_landmarks, yunet
from fantasyid_core.detection.landmark_network import POINTS
from fantasyid_core.detection.multiscale import search
from fantasyid_lab import nano
from fantasyid_lab.people.camera import project
from fantasyid_lab.people.clip import Clip, still
from fantasyid_lab.people.head import LEFT_EYE, RIGHT_EYE, SKIN, Head, load, rotation
from fantasyid_lab.people.person import TRAIN, person
from fantasyid_lab.people.render import render
from tools.assets.build_nano_mesh import _sums

MODEL = nano.SHIPPED / "face_model" / "generic_model.safetensors"
PEOPLE = 740
LIMITS = 60.0, 25.0, 25.0  # degrees of yaw, pitch and roll
_FARTHEST = 8.0  # mm that a single reading counts at most
_FACING = 0.3  # cosine between the surface's normal and the view from which on a place counts
_LEAST_SEEN = 0.2  # of the photos in which a place must face the camera
_GRID = 5  # steps along a triangle's sides
_COMPONENTS = 30
_BATCH = 8


class Readings(NamedTuple):
    """N photos of people.

    Attributes:
        points: (N, 478, 2) px as read.
        vertices: (N, V, 3) metres, of the heads at rest with their expressions.
        pixels: (N, V, 2) px.
        facing: (N, V) cosine between normal and view.
        millimetres: (N,) per px.
        turn: (N, 3, 3) of the heads.
        roll: (N,) degrees of the camera.
    """

    points: Tensor
    vertices: Tensor
    pixels: Tensor
    facing: Tensor
    millimetres: Tensor
    turn: Tensor
    roll: Tensor


def photos(people: int = PEOPLE) -> list[tuple[Clip, int]]:
    """What is rendered, and how many px large; about a third of the people turned."""
    turns = people * 12 // 37
    ordinary = [(still(person(seed), 0), 384 if seed < TRAIN[100] else 320) for seed in TRAIN[: people - turns]]
    return ordinary + [(turned(seed), 224) for seed in TRAIN[1000 : 1000 + turns]]


def turned(seed: int) -> Clip:
    """A photo of a person whose pose is drawn evenly."""
    pose = np.random.default_rng([seed, 77]).uniform(-1, 1, (1, 3)) * LIMITS
    return replace(still(person(seed), seed), pose=pose.astype(np.float32))


def read(clips: list[Clip], size: int, head: Head) -> Readings:
    """Render photos of one size and read them; those in which no face is found are left out."""
    frames = render(clips, size).frames[:, 0]
    faces = search(frames, yunet.detect, 0.5)
    found = [i for i, own in enumerate(faces) if len(own)]
    points = [dense_landmarks.read(frames[i], faces[i].landmarks[:1])[0][0, :, :2] for i in found]
    return readings([clips[i] for i in found], size, torch.stack(points), head)


def readings(clips: list[Clip], size: int, points: Tensor, head: Head) -> Readings:
    """Points (N, 478, 2) px that were read in photos of one size, with what is true there."""
    shape = torch.stack([clip.person.shape_code for clip in clips])
    expression, pose, camera = (
        torch.from_numpy(np.concatenate([getattr(clip, name) for clip in clips]))
        for name in ("expression", "pose", "camera")
    )
    vertices = head.vertices(shape, expression, pose)
    eye = torch.stack([camera[:, 0], camera[:, 1], camera[:, 3]], -1)[:, None]
    facing = (_normals(vertices, head.faces) * F.normalize(eye - vertices, dim=-1)).sum(-1)
    return Readings(
        points,
        head.vertices(shape, expression),
        project(vertices, camera, size)[..., :2],
        facing,
        1000 * camera[:, 2] / size,
        rotation(pose),
        camera[:, 4],
    )


def _normals(vertices: Tensor, faces: Tensor) -> Tensor:
    a, b, c = (vertices[:, faces[:, corner]] for corner in range(3))
    across, total = torch.linalg.cross(b - a, c - a), torch.zeros_like(vertices)
    for corner in range(3):
        total.index_add_(1, faces[:, corner], across)
    return F.normalize(total, dim=-1)


def register(data: Readings, head: Head) -> tuple[Tensor, Tensor]:
    """Where the points are: corners (478, 3) int64 of a triangle each, and barycentric weights (478, 3)."""
    inside = head.masks[:, head.mask_names.index("inside-mouth")] > 0.5
    front = ~inside & (head.template[:, 1] > -0.16) & (head.template[:, 2] > -0.09)
    kinds = (head.parts == SKIN) | (head.parts == LEFT_EYE) | (head.parts == RIGHT_EYE)
    faces = head.faces[kinds & front[head.faces].all(1)]
    vertices = faces.unique()
    rows, columns = torch.meshgrid(torch.arange(_GRID + 1), torch.arange(_GRID + 1), indexing="ij")
    steps = torch.stack([rows, columns, _GRID - rows - columns], -1)
    grid = steps[rows + columns <= _GRID] / _GRID
    corners, weights = [], []
    for point in range(POINTS):
        cost = _cost(data, point, data.pixels[:, vertices], data.facing[:, vertices])
        near = torch.isin(faces, vertices[cost.argsort()[:4]]).any(1)
        places = torch.einsum("gk,ntkx->ntgx", grid, data.pixels[:, faces[near]]).flatten(1, 2)
        facing = data.facing[:, faces[near]].mean(-1).repeat_interleave(len(grid), 1)
        best = int(_cost(data, point, places, facing).argmin())
        corners.append(faces[near][best // len(grid)])
        weights.append(grid[best % len(grid)])
    return torch.stack(corners), torch.stack(weights)


def _cost(data: Readings, point: int, places: Tensor, facing: Tensor) -> Tensor:
    """(M,) mean distance in mm of places (N, M, 2) from a point as it was read, where they face the camera."""
    apart = (data.points[:, point, None] - places).norm(dim=-1) * data.millimetres[:, None]
    shown = (facing > _FACING).float()
    cost = (apart.clamp(max=_FARTHEST) * shown).sum(0) / shown.sum(0).clamp(min=1)
    return cost.masked_fill(shown.mean(0) < _LEAST_SEEN, torch.inf)


def errors(data: Readings, corners: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How far off the points are, mm on the head at rest: in the mean (478, 3), by themselves (478,), and the ways
    (478, 3, K) in which they are off together, per standard deviation.
    """

    def at_points(values: Tensor) -> Tensor:
        return torch.einsum("lk,nlkx->nlx", weights, values[:, corners])

    facing = at_points(data.facing[..., None])[..., 0]
    x, y = ((data.points - at_points(data.pixels)) * data.millimetres[:, None, None]).unbind(-1)
    roll = data.roll.deg2rad()[:, None]
    off = torch.stack([x * roll.cos() + y * roll.sin(), x * roll.sin() - y * roll.cos()], -1)  # across and up
    seen = facing > _FACING / 2
    shown = ((facing - 0.05) / 0.25).clamp(0, 1)
    places = 1000 * at_points(data.vertices) @ data.turn.mT
    places = places - places.mean(1, keepdim=True)
    x, y, z = places.unbind(-1)
    nil, one = torch.zeros_like(x), torch.ones_like(x)
    ways = ((one, nil), (nil, one), (x, y), (-y, x), (z, nil), (nil, z))  # shifts, scale, turns
    moves = torch.stack([torch.stack(way, -1) for way in ways], -1)
    weight = shown.sqrt()[..., None]
    fitted = torch.linalg.lstsq(
        (moves * weight[..., None]).flatten(1, 2), (off * weight).flatten(1)[..., None]
    ).solution
    off = off - (moves @ fitted[:, None])[..., 0]
    left = (F.pad(off, (0, 1)) @ data.turn) * seen[..., None]
    count = seen.sum(0).clamp(min=10)
    mean = left.sum(0) / count[:, None]
    mean[:, 2] = 0
    left = (left - mean) * seen[..., None]
    spread = (left.square().sum((0, 2)) / count).sqrt()
    flat = (left / spread[:, None]).flatten(1)
    _, strengths, components = torch.linalg.svd(flat, full_matrices=False)
    components = components[:_COMPONENTS]
    rest = (flat - flat @ components.T @ components).unflatten(1, left.shape[1:]) * spread[:, None]
    degrees = len(flat) / (len(flat) - _COMPONENTS)
    own = (rest.square().sum((0, 2)) / count / 2 * degrees).sqrt()
    together = components * (strengths[:_COMPONENTS, None] / len(flat) ** 0.5)
    return mean, own, together.unflatten(1, left.shape[1:]).permute(1, 2, 0) * spread[:, None, None]


def main() -> None:
    """Add the tensors to the face model's file."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--model", type=Path, default=MODEL)
    arguments.add_argument("--people", type=int, default=PEOPLE)
    options = arguments.parse_args()
    path: Path = options.model
    torch.set_num_threads(1)
    head = load()
    parts = []
    wanted = photos(options.people)
    for size in sorted({size for _, size in wanted}):
        clips = [clip for clip, own in wanted if own == size]
        parts += [read(clips[i : i + _BATCH], size, head) for i in range(0, len(clips), _BATCH)]
    data = Readings(*map(torch.cat, zip(*parts, strict=True)))
    corners, weights = register(data, head)
    mean, own, together = errors(data, corners, weights)

    def at_points(values: Tensor) -> Tensor:
        return torch.einsum("lk,lk...->l...", weights, values[corners])

    tensors = load_file(path)
    vertices = torch.cdist(tensors["v_template"].float(), head.template).argmin(1)
    basis = torch.cat([head.shape_basis, head.expression_basis], 2)
    dense = _sums(head, vertices, at_points(head.template) + mean / 1000, at_points(basis))
    tensors |= {
        "denselandmarks": dense.half(),
        "densedeviations": own / 1000,
        "denseerrors": (together / 1000).half().contiguous(),
    }
    with safe_open(path, "pt") as file:
        about = file.metadata() or {}
    about["dense"] = json.dumps({"photos": len(data.points), "own_mm": round(float(own.median()), 2)})
    save_file(tensors, path, about)


if __name__ == "__main__":
    main()
