"""The tables of docs/reconstruction.md: `python -m tools.measure.reconstruction [--people N] [--noise PX]`.

Synthetic people whose shape is known stand before the camera of their photos (`people.clip.still`, up to 40° of yaw,
quiet or smiling); their true landmarks get noise, and the face model is fitted to them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fantasyid_core.fusion import mesh_hierarchy
from fantasyid_core.reconstruction import flame, render
from fantasyid_core.reconstruction.landmark_fit import fit
from fantasyid_core.reconstruction.rasteriser import rasterise
from fantasyid_lab import nano
from fantasyid_lab.people import head as heads
from fantasyid_lab.people.camera import project
from fantasyid_lab.people.clip import still
from fantasyid_lab.people.person import TEST, person

SIZE = 512  # px of the photos' sides; eyes are about 75 px apart
PHOTOS = (1, 2, 4, 8)
FACE = ((-0.1, -0.13, 0.0), (0.1, 0.06, 1.0))  # metres: from the chin to the brows, the front half of the head


@dataclass(frozen=True, eq=False)
class Photos:
    """P people in N photos each.

    Attributes:
        shape: (P, 100) the true codes.
        landmarks: (P, N, 68, 2) px from the picture's middle, exact; focal: (P, N) px.
    """

    shape: Tensor
    landmarks: Tensor
    focal: Tensor


def photos(people: int, each: int = max(PHOTOS)) -> Photos:
    """The first people of those to test on."""
    head = heads.load()
    persons = [person(seed) for seed in TEST[:people]]
    clips = [still(one, seed) for one in persons for seed in range(each)]
    shape = torch.from_numpy(np.stack([one.shape_code for one in persons])).float()
    expression, pose, camera = (
        torch.from_numpy(np.concatenate([getattr(clip, name) for clip in clips]))
        for name in ("expression", "pose", "camera")
    )
    pixels = project(head.vertices(shape.repeat_interleave(each, 0), expression, pose), camera, SIZE)
    landmarks = pixels[:, head.landmarks, :2] - (SIZE - 1) / 2
    focal = SIZE / camera[:, 2] * camera[:, 3]
    return Photos(shape, landmarks.unflatten(0, (people, each)), focal.unflatten(0, (people, each)))


def face_model() -> flame.Flame:
    """The face model that ships with FantasyID-nano."""
    return flame.load(nano.SHIPPED / "face_model" / "generic_model.safetensors")


def errors(model: flame.Flame, found: Tensor, true: Tensor) -> tuple[float, float]:
    """Mean distance of the neutral face's vertices in mm: as they are, and after the best shift, turn and scale."""
    low, high = torch.tensor(FACE)
    face = ((model.template > low) & (model.template < high)).all(1)
    a, b = (1000 * model.decode(code)[:, face] for code in (found, true))
    plain = (a - b).norm(dim=-1).mean()
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    u, strength, v = torch.linalg.svd(a.mT @ b)
    scale = strength.sum(-1) / a.square().sum((1, 2))
    return float(plain), float((scale[:, None, None] * a @ u @ v - b).norm(dim=-1).mean())


def by_photos(
    data: Photos, noise: float = 2.0, landmarks: int = 68, known_focal: bool = False
) -> dict[str, tuple[float, float]]:
    """`errors` of the mean face, of one shape from 1, 2, 4 and 8 photos, and of what could be done with single fits.

    Args:
        noise: standard deviation of the landmarks, px.
        landmarks: how many of the 68 are used; 5 are the detector's.
        known_focal: whether the fit knows the lens, or has a weak perspective.
    """
    model = face_model()
    draw = torch.Generator().manual_seed(0)
    noisy = (data.landmarks + noise * torch.randn(data.landmarks.shape, generator=draw))[:, :, :landmarks]
    points, people = model.landmarks[:landmarks], len(data.shape)

    def shapes(marks: Tensor, focal: Tensor) -> Tensor:
        return fit(
            model,
            marks,
            points,
            noise=noise,
            focal=focal if known_focal else None,
            expression_deviations=model.expression_deviations,
        ).shape

    rows = {"mean face": errors(model, torch.zeros_like(data.shape), data.shape)}
    for count in PHOTOS:
        fitted = shapes(noisy[:, :count], data.focal[:, :count])
        rows[f"{count} photo{'s' * (count > 1)}"] = errors(model, fitted, data.shape)
    single = shapes(noisy.flatten(0, 1)[:, None], data.focal.reshape(-1, 1)).unflatten(0, (people, -1))
    rows["mean of 8 single fits"] = errors(model, single.mean(1), data.shape)
    pairs = zip(single, data.shape, strict=True)
    each = [[errors(model, code[None], true[None])[1] for code in codes] for codes, true in pairs]
    rows["best of 8 single fits, chosen by the truth"] = (float("nan"), float(torch.tensor(each).amin(1).mean()))
    return rows


def milliseconds(what: Callable[[], object], repeats: int = 7) -> float:
    """Processor time of all threads, to which other processes do not add: the median of several runs."""
    what()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        what()
        times.append(1000 * (time.process_time() - start))
    return sorted(times)[len(times) // 2]


def timings(data: Photos) -> dict[str, float]:
    """Milliseconds of processor time on this machine."""
    model = face_model()
    one, eight = data.landmarks[:1, :1], data.landmarks[:1]
    head = heads.load()
    vertices, faces = head.template, head.faces[:10_000]
    px = vertices * torch.tensor([1400.0, -1400, -1400]) + torch.tensor([255.0, 255, 0])
    mesh = mesh_hierarchy.load(nano.SHIPPED / "face_model" / "topology.safetensors")
    return {
        "fit, 1 photo, 5 landmarks": milliseconds(lambda: fit(model, one[:, :, :5], model.landmarks[:5])),
        "fit, 1 photo, 68 landmarks": milliseconds(lambda: fit(model, one, model.landmarks)),
        "fit, 8 photos, 68 landmarks": milliseconds(lambda: fit(model, eight, model.landmarks)),
        "rasterise 10,000 triangles at 512 × 512": milliseconds(lambda: rasterise(px, faces, 512, 512)),
        "shaded preview, 512 × 512, the same mesh": milliseconds(lambda: render.shade(vertices, faces)),
        "turntable, 24 frames of 512 × 512, 2,000 triangles": milliseconds(
            lambda: render.turntable(mesh.template, mesh.faces[0]), 3
        ),
    }


def main() -> None:
    """Print the tables."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--people", type=int, default=100)
    arguments.add_argument("--noise", type=float, default=2.0, help="px, in photos of 512 px")
    options = arguments.parse_args()
    data = photos(options.people)
    print(f"{options.people} people, {torch.get_num_threads()} threads")
    for title, seconds in timings(data).items():
        print(f"| {title} | {seconds:.0f} ms |")
    for landmarks, known in ((68, True), (68, False), (5, False)):
        print(f"\n{landmarks} landmarks, noise {options.noise:g} px, lens {'known' if known else 'not known'}")
        for title, (plain, aligned) in by_photos(data, options.noise, landmarks, known).items():
            print(f"| {title} | {plain:.2f} | {aligned:.2f} |")


if __name__ == "__main__":
    main()
