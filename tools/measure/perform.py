"""How well a captured performance fits another person: `python -m tools.measure.perform [--people N]`.

Clips of TEST people are rendered, captured with FantasyID-nano's face model and put on the next person's true shape and
on the shape that one photo of that person gives. The truth is that person's mesh with the clip's true expressions and
head pose. Errors are those of the face's vertices, mm, after the best size and place of every frame, not its turn.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fantasyid_core.detection.dense_landmarks import with_dense_landmarks
from fantasyid_core.detection.face_track import FaceTrack, follow
from fantasyid_core.detection.faces import detect
from fantasyid_core.reconstruction import face_mesh
from fantasyid_core.reconstruction.face_mesh import FaceMesh
from fantasyid_core.reconstruction.flame import Flame
from fantasyid_core.reconstruction.performance import capture, perform
from fantasyid_lab.people import head as heads
from fantasyid_lab.people.clip import Clip, clip, still
from fantasyid_lab.people.motion import FPS
from fantasyid_lab.people.person import TEST, Person, person
from fantasyid_lab.people.render import render
from tools.measure.reconstruction import FACE, face_model

SIZE = 256  # px of the clips, whose faces are then some 110 px wide
STILL_NOISE = 0.01  # standard deviation of the pixels of a video of a still face


def true_frames(model: Flame, who: Person, played: Clip) -> Tensor:
    """(T, V, 3) metres: a person with the expressions and the head pose of a clip, of somebody else maybe."""
    vertices = model.decode(who.shape_code[None].expand(played.frames, -1), torch.from_numpy(played.expression))
    return model.turn(vertices, heads.rotation(true_pose(played)))


def true_pose(played: Clip) -> Tensor:
    """(T, 3) degrees of the head in the picture: the camera leans too."""
    pose, camera = torch.from_numpy(played.pose), torch.from_numpy(played.camera)
    return torch.cat([pose[:, :2], (pose[:, 2] + camera[:, 4])[:, None]], 1)


def errors(model: Flame, found: Tensor, true: Tensor) -> Tensor:
    """(T,) mm: mean distance of the face's vertices after the best scale and shift of every frame."""
    low, high = torch.tensor(FACE)
    face = ((model.template > low) & (model.template < high)).all(1)
    a, b = (1000 * (frames[:, face] - frames[:, face].mean(1, keepdim=True)) for frames in (found, true))
    scale = (a * b).sum((1, 2)) / a.square().sum((1, 2))
    return (scale[:, None, None] * a - b).norm(dim=-1).mean(1)


def jitter(model: Flame, track: FaceTrack) -> tuple[float, float]:
    """mm by which a face that does not move moves: standard deviation over time, and from frame to frame."""
    low, high = torch.tensor(FACE)
    face = ((model.template > low) & (model.template < high)).all(1)
    played = perform(model, FaceMesh(model.template, model.faces), capture(model, track))
    frames = 1000 * played.vertices()[len(track.present) // 3 :, face]
    spread = (frames - frames.mean(0)).square().sum(-1).mean(0).sqrt()
    return float(spread.mean()), float(frames.diff(dim=0).norm(dim=-1).mean())


def still_video(who: Person, frames: int = 45) -> Tensor:
    """(T, S, S, 3): one photo of a person over and over, with other noise in every frame."""
    photo = render([still(who, 0)], SIZE).frames[0, 0]
    draw = torch.Generator().manual_seed(who.seed)
    return (photo + STILL_NOISE * torch.randn(frames, *photo.shape, generator=draw)).clamp(0, 1)


def one_photo(model: Flame, who: Person) -> FaceMesh:
    """The mesh that one photo of 512 px gives."""
    (face,) = with_dense_landmarks(detect(render([still(who, 0)], 512).frames[0, 0])[:1])
    return face_mesh.from_dense_landmarks(face, model, face_mesh.SHAPE_ONLY)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--people", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = face_model()
    people = [person(seed) for seed in TEST[: options.people + 1]]
    rows: dict[str, list[float]] = {}
    for actor, other in pairwise(people):
        played = clip(actor, actor.seed)
        track = follow(render([played], SIZE).frames[0], FPS)
        performance = capture(model, track)
        true = true_frames(model, other, played)
        own = FaceMesh(model.template, model.faces, other.shape_code)
        found = {
            "on the other's true shape": perform(model, own, performance),
            "on the shape of one photo": perform(model, one_photo(model, other), performance),
            "no expression": perform(model, own, performance, expression_strength=0),
            "no motion": perform(model, own, performance, expression_strength=0, head_strength=0),
        }
        found["the first with the true head pose"] = replace(found["on the other's true shape"], pose=true_pose(played))
        for name, animation in found.items():
            rows.setdefault(name, []).append(float(errors(model, animation.vertices(), true).mean()))
        spread, step = jitter(model, follow(still_video(actor), 25.0))
        rows.setdefault("a still face, standard deviation", []).append(spread)
        rows.setdefault("a still face, from frame to frame", []).append(step)
    for name, values in rows.items():
        print(f"| {name} | {np.mean(values):.2f} mm, median {np.median(values):.2f}, worst {max(values):.2f} |")


if __name__ == "__main__":
    main()
