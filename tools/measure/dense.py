"""What the dense landmarks of synthetic people say of them: `python -m tools.measure.dense [--people N] [--save]`.

TEST people are rendered as photos of 512 px (shape), 192 px with any pose (head pose) and clips of 256 px (expression),
found by the detector, read by the network and fitted with FantasyID-nano's face model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from fantasyid_core.detection import dense_landmarks, yunet
from fantasyid_core.detection.dense_pose import pose_from_dense
from fantasyid_core.detection.multiscale import search
from fantasyid_core.reconstruction.dense_fit import fit_dense
from fantasyid_core.reconstruction.flame import Flame
from fantasyid_lab.people import head as heads
from fantasyid_lab.people.clip import Clip, clip, still
from fantasyid_lab.people.person import TEST, person
from fantasyid_lab.people.render import render
from tools.assets.dense_points import turned
from tools.measure.reconstruction import errors, face_model

FIXTURE = Path(__file__).parents[2] / "tests" / "fixtures" / "landmarks" / "people.safetensors"
SAVED = {"photos": 4, "poses": 20, "clips": 3}
"""How many people the tests look at."""
PHOTOS = 8
ACTIONS = {
    "jaw": ("jawOpen",),
    "smile": ("mouthSmileLeft", "mouthSmileRight"),
    "blink": ("eyeBlinkLeft", "eyeBlinkRight"),
    "brows": ("browInnerUp", "browOuterUpLeft", "browOuterUpRight"),
}
_MOVES = 0.1  # standard deviation of an action's strength over a clip in which it happens


def read(clips: list[Clip], size: int) -> Tensor:
    """(N, T, 478, 3) px as the network reads rendered clips; NaN where the detector finds no face."""
    found = []
    for one in clips:
        frames = render([one], size).frames[0]
        points = torch.full((len(frames), dense_landmarks.POINTS, 3), torch.nan)
        for i, faces in enumerate(search(frames, yunet.detect, 0.5)):
            if len(faces):
                points[i] = dense_landmarks.read(frames[i], faces.landmarks[:1])[0][0]
        found.append(points)
    return torch.stack(found)


def shape_errors(model: Flame, points: Tensor) -> dict[int, float]:
    """Aligned error in mm of the neutral faces of the first TEST people from 1 and from all of their photos (P, N, …);
    of the mean face at 0.
    """
    true = torch.stack([person(seed).shape_code for seed in TEST[: len(points)]])
    counts = (1, points.shape[1])
    found = {
        count: torch.cat([fit_dense(model, part[:, :count]).shape for part in points.split(8)]) for count in counts
    }
    return {count: errors(model, shape, true)[1] for count, shape in ({0: torch.zeros_like(true)} | found).items()}


def pose_errors(points: Tensor) -> Tensor:
    """(N, 3) degrees of yaw, pitch and roll, read less true, of `turned` TEST people (N, 1, 478, 3)."""
    clips = [turned(seed) for seed in TEST[: len(points)]]
    pose, camera = (
        torch.from_numpy(np.concatenate([getattr(one, name) for one in clips])) for name in ("pose", "camera")
    )
    true = torch.cat([pose[:, :2], (pose[:, 2] + camera[:, 4])[:, None]], 1)
    return pose_from_dense(points[:, 0]) - true


def expression_correlations(model: Flame, points: Tensor) -> dict[str, list[float]]:
    """Of each action its correlation with the truth over every clip in which it happens, of clips (N, T, 478, 3)."""
    names = heads.load().expressions
    found: dict[str, list[float]] = {action: [] for action in ACTIONS}
    for seed, own in zip(TEST, points, strict=False):
        fitted = fit_dense(model, own[None], iterations=6).expression[0]
        true = torch.from_numpy(clip(person(seed), seed).expression)
        for action, parts in ACTIONS.items():
            columns = [names.index(part) for part in parts]
            strengths = torch.stack([fitted[:, columns].mean(1), true[:, columns].mean(1)])
            if strengths[1].std() > _MOVES:
                found[action].append(float(torch.corrcoef(strengths)[0, 1]))
    return found


def main() -> None:
    """Print the tables, or write the readings that the tests use."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=24)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = {name: TEST[: count if options.save else options.people] for name, count in SAVED.items()}
    photos = read([still(person(seed), number) for seed in seeds["photos"] for number in range(PHOTOS)], 512)
    points = {
        "photos": photos[:, 0].unflatten(0, (-1, PHOTOS)),
        "poses": read([turned(seed) for seed in seeds["poses"]], 192),
        "clips": read([clip(person(seed), seed) for seed in seeds["clips"]], 256),
    }
    if options.save:
        save_file(points, FIXTURE)
        return
    model = face_model()
    for count, error in shape_errors(model, points["photos"]).items():
        print(f"| {f'{count} photos' if count else 'mean face'} | {error:.2f} mm |")
    off = pose_errors(points["poses"]).abs()
    print("| yaw, pitch, roll, median | " + ", ".join(f"{x:.1f}°" for x in off.nanmedian(0).values.tolist()) + " |")
    for action, own in expression_correlations(model, points["clips"]).items():
        print(f"| {action} | {np.median(own):.3f} in {len(own)} clips |")


if __name__ == "__main__":
    main()
