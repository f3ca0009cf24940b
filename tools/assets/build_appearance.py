"""Make fantasyid_core/data/appearance.safetensors (minutes): `python -m tools.assets.build_appearance [--people N]`.

The mean of real faces (scikit-image's astronaut and the six of the insightface wheel's sample photo, mirrored too), and
the directions in which descriptors of one and the same synthetic person differ from frame to frame and clip to clip:
pose, expression, light, hair.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fantasyid_core.detection.faces import detect
from fantasyid_core.images import load_photo
from fantasyid_core.views import appearance
from fantasyid_lab.people.clip import clip
from fantasyid_lab.people.person import TRAIN, person
from fantasyid_lab.people.render import render

DIRECTIONS = 32
MOMENTS = [0, 8, 16, 24]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=30)
    torch.set_num_threads(1)
    real = real_faces().mean(0)
    people = [synthetic_faces(seed) for seed in TRAIN[: parser.parse_args().people]]
    other_kind = torch.cat(people).mean(0) - real
    within = torch.cat([faces - faces.mean(0) for faces in people])
    directions = torch.linalg.svd(within, full_matrices=False)[2][:DIRECTIONS]
    nuisance = torch.linalg.qr(torch.cat([other_kind[None], directions]).T)[0].T.contiguous()
    save_file({"mean": real, "nuisance": nuisance}, appearance.FILE)


def real_faces() -> Tensor:
    from skimage.data import astronaut

    group = Path(importlib.util.find_spec("insightface").origin).parent / "data" / "images" / "t1.jpg"
    faces = [*detect(torch.from_numpy(astronaut()).float() / 255), *detect(load_photo(group))]
    crops = torch.stack([face.crop for face in faces])
    return appearance.gradients(torch.cat([crops, crops.flip(2)]))


def synthetic_faces(seed: int) -> Tensor:
    """Descriptors (N, 576) of a person in four moments of two clips."""
    crops = []
    for number in (0, 1):
        drawn = clip(person(seed), number)
        drawn = dataclasses.replace(
            drawn, pose=drawn.pose[MOMENTS], expression=drawn.expression[MOMENTS], camera=drawn.camera[MOMENTS]
        )
        crops += [face.crop for frame in render([drawn], 192).frames[0] for face in detect(frame)[:1]]
    return appearance.gradients(torch.stack(crops))


if __name__ == "__main__":
    main()
