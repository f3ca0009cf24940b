"""What can be told of a face from the vertices that the spiral network reads, by depth alone and by all coordinates:
`python -m tools.measure.vertex_axes`.

A ridge regression from the coarse vertices of FantasyID-nano's face model, four fifths of the people to learn from, the
rest to be measured: an upper bound of what any tokens made of them can carry as plainly.
"""

import argparse

import numpy as np
import torch
from torch import Tensor, nn

from fantasyid_core.dit.acting import per_latent
from fantasyid_core.fusion import mesh_hierarchy
from fantasyid_core.fusion.spiral_net import AXES, Pool
from fantasyid_core.reconstruction import flame
from fantasyid_lab.evaluation.acting import CURVES
from fantasyid_lab.nano import SHIPPED
from fantasyid_lab.people.head import load as load_head
from fantasyid_lab.people.motion import draw_labels, draw_motion
from fantasyid_lab.people.person import TRAIN, person
from fantasyid_lab.training.acting import Performances, meshes_per_latent_frame
from fantasyid_lab.training.face_truth import variance_explained, vertex_gram

FRAMES = 25
STRENGTHS = (1e-2, 1e-3, 1e-4, 1e-5)  # of the ridge, the best of which counts


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser("python -m tools.measure.vertex_axes", description=__doc__)
    parser.add_argument("--people", type=int, default=800)
    people = parser.parse_args(arguments).people
    face = flame.load(SHIPPED / "face_model" / "generic_model.safetensors")
    hierarchy = mesh_hierarchy.load(SHIPPED / "face_model" / "topology.safetensors")
    coarse = nn.Sequential(*(Pool(*hierarchy.down[i]) for i in range(len(hierarchy.spirals))))
    codes = torch.stack([person(TRAIN[i]).shape_code for i in range(people)]).float()
    neutral = face.decode(codes)
    performances = _performances(people)
    moving = meshes_per_latent_frame(face, neutral, performances)
    curves = _curves(performances)
    gram = vertex_gram(face.shape_basis[..., :100])
    print(f"| read of {people} people | {' | '.join(CURVES)} | shape |\n| --- |{' --- |' * (len(CURVES) + 1)}")
    for axes in ("z", "xyz"):
        places = [AXES.index(axis) for axis in axes]
        read = [coarse(mesh)[..., places].flatten(1) for mesh in (moving.flatten(0, 1), neutral)]
        correlations = [max(x) for x in zip(*(_correlations(read[0], curves, s) for s in STRENGTHS), strict=True)]
        shape = max(variance_explained(*_predicted(read[1], codes, s), gram) for s in STRENGTHS)
        print(f"| {axes} | {' | '.join(f'{x:.2f}' for x in correlations)} | {shape:.2f} |")


def _performances(people: int) -> Performances:
    drawn = []
    for seed in range(people):
        rng = np.random.default_rng(seed)
        drawn.append(draw_motion(rng, draw_labels(rng, "red", "grey"), FRAMES))
    expression, pose = (
        torch.from_numpy(np.stack([getattr(m, name) for m in drawn])) for name in ("expression", "pose")
    )
    return Performances(expression, pose)


def _curves(performances: Performances) -> Tensor:
    """(people · t, 5), in the order of `CURVES`."""
    expression, pose = (
        per_latent(x.movedim(1, 0)).movedim(0, 1).flatten(0, 1) for x in (performances.expression, performances.pose)
    )
    strength = dict(zip(load_head().expressions, expression.unbind(1), strict=True))
    smile = (strength["mouthSmileLeft"] + strength["mouthSmileRight"]) / 2
    return torch.stack([*pose.unbind(1), strength["jawOpen"], smile], 1)


def _predicted(x: Tensor, y: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """What a ridge regression tells of the last fifth, and what is true of it."""
    count = len(x) * 4 // 5
    mean, spread, offset = x[:count].mean(0), x[:count].std(0) + 1e-9, y[:count].mean(0)
    x = ((x - mean) / spread).double()
    known = x[:count]
    gram = known.T @ known + strength * count * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(gram, known.T @ (y[:count] - offset).double())
    return (x[count:] @ weights).float() + offset, y[count:]


def _correlations(x: Tensor, y: Tensor, strength: float) -> list[float]:
    pairs = zip(*(values.unbind(1) for values in _predicted(x, y, strength)), strict=True)
    return [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs]


if __name__ == "__main__":
    main()
