"""Write the template that heads' poses are read by: `python -m tools.assets.dense_template [--people N]`.

The dense points of FantasyID-nano's mean head, turned by what the network reads heads looking too far down: the median
over TRAIN people whose poses are drawn evenly from ±60° of yaw and ±25° of pitch and roll (three minutes of one core).
"""

from __future__ import annotations

import argparse

import torch
from safetensors.torch import save_file
from torch import Tensor

from fantasyid_core.detection import dense_landmarks, dense_pose
from fantasyid_core.detection.faces import detect
from fantasyid_core.detection.head_pose import rotation
from fantasyid_core.reconstruction import flame
from fantasyid_core.reconstruction.landmark_fit import at_landmarks
from fantasyid_lab.people.person import TRAIN
from fantasyid_lab.people.render import render
from tools.assets.dense_points import MODEL, turned

_PHOTO, _FIRST = 192, 2000  # px; of TRAIN, beyond those that the points were found by


def readings(people: int) -> tuple[Tensor, Tensor]:
    """Points (N, 478, 3) px as the network reads them in rendered photos, and the true poses (N, 3) degrees."""
    points, poses = [], []
    for seed in TRAIN[_FIRST : _FIRST + people]:
        rendered = render([turned(seed)], _PHOTO)
        if faces := detect(rendered.frames[0]):
            points.append(dense_landmarks.read(faces[0].image, faces[0].landmarks[None])[0][0])
            poses.append(rendered.pose[0, 0])
    return torch.stack(points), torch.stack(poses)


def main() -> None:
    """Write the file."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--people", type=int, default=400)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    model = flame.load(MODEL)
    assert model.dense_landmarks is not None, "nano's head has them"
    points = at_landmarks(model.dense_landmarks, model.template)
    _save(points)
    seen, poses = readings(options.people)
    left_over = rotation(*poses.unbind(-1)).mT @ dense_pose.rotation_of(seen)
    _save(points @ rotation(*_pitch(left_over)).mT)


def _pitch(turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The median pitch of small turns (N, 3, 3) as yaw, pitch and roll in degrees."""
    pitch = torch.rad2deg(torch.atan2(-turns[:, 2, 1], turns[:, 2, 2])).median()
    return torch.zeros_like(pitch), pitch, torch.zeros_like(pitch)


def _save(points: Tensor) -> None:
    """Write points (478, 3) as the template."""
    dense_pose.template.cache_clear()
    save_file({"points": points.half()}, dense_pose.TEMPLATE)


if __name__ == "__main__":
    main()
