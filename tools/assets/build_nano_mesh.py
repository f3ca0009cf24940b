"""Build the mesh hierarchy and the face model of FantasyID-nano from the synthetic people's head (offline, once).

    python -m pip install --no-deps fast-simplification==0.2.0 trimesh==5.2.0
    python -m tools.assets.build_nano_mesh

The skin of head and neck is decimated (Garland & Heckbert 1997) to about 1,000, 250 and 64 vertices. Every vertex of a
coarser level is one of the finer level, and of the head: shape and expression bases carry over as they are.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fantasyid_core.fusion import mesh_hierarchy
from fantasyid_core.fusion.mesh_hierarchy import SPIRAL_LENGTH, Topology, Transform
from fantasyid_core.fusion.spirals import spirals
from fantasyid_core.reconstruction import flame
from fantasyid_lab import nano
from fantasyid_lab.people.clip import still
from fantasyid_lab.people.head import SKIN, Head, load
from fantasyid_lab.people.person import TRAIN, person

LEVELS = (1024, 256, 64)
NECK = -0.135  # metres below the eyes at which the mesh ends
JOINTS = 5  # FLAME's: root, neck, jaw, two eyes. Only the root moves: expressions open the mouth and turn the eyes


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--out", type=Path, default=nano.SHIPPED / "face_model")
    out: Path = arguments.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    head = load()
    indices, mesh = hierarchy(head)
    mesh_hierarchy.save(mesh, out / "topology.safetensors")
    save_file(face_model(head, indices, mesh.faces[0]), out / "generic_model.safetensors", metadata={"format": "pt"})
    flame.load(out / "generic_model.safetensors")
    mesh_hierarchy.load(out / "topology.safetensors")
    print(f"{out}: levels of {mesh.levels} vertices")


def hierarchy(head: Head) -> tuple[Tensor, Topology]:
    """Which of the head's vertices the finest level has, and the levels."""
    names = head.mask_names
    outside = head.masks[:, names.index("inside-mouth")] < 0.5
    wanted = outside & (head.template[:, 1] > NECK)
    faces = head.faces[(head.parts == SKIN) & wanted[head.faces].all(1)]
    indices, faces = _largest_piece(faces)
    levels = []  # of (vertices as indices into the level above, faces)
    points = head.template[indices]
    for count in LEVELS:
        chosen, faces = _decimated(points, faces, count)
        levels.append((chosen, faces))
        points = points[chosen]
    indices = indices[levels[0][0]]
    vertices = [head.template[indices]]
    for chosen, _ in levels[1:]:
        vertices.append(vertices[-1][chosen])
    downs = []
    for (fine, coarse), (chosen, _) in zip(pairwise(vertices), levels[1:], strict=True):
        rows = torch.arange(len(coarse))
        downs.append((rows, chosen, torch.ones(len(coarse)), (len(coarse), len(fine))))
    ups = [_up(fine, coarse, levels[i + 1][1]) for i, (fine, coarse) in enumerate(pairwise(vertices))]
    lists = tuple(spirals(vertices[i], levels[i][1], SPIRAL_LENGTH) for i in range(len(LEVELS) - 1))
    counts = tuple(len(level) for level in vertices)
    faces_of = tuple(faces for _, faces in levels)
    return indices, Topology(counts, vertices[0].contiguous(), faces_of, tuple(downs), tuple(ups), lists)


def face_model(head: Head, indices: Tensor, faces: Tensor) -> dict[str, Tensor]:
    """FLAME's arrays for the head's vertices `indices`: 100 shapes, 50 expressions, one root joint, landmarks."""
    count = len(indices)
    directions = torch.zeros(count, 3, flame.SHAPE_COLUMNS + head.expression_basis.shape[2])
    directions[..., : head.shape_basis.shape[2]] = head.shape_basis[indices]
    directions[..., flame.SHAPE_COLUMNS :] = head.expression_basis[indices]
    weights = torch.zeros(count, JOINTS)
    weights[:, 0] = 1
    return {
        "v_template": head.template[indices].contiguous(),
        "f": faces.int(),
        "shapedirs": directions.half(),
        "posedirs": torch.zeros(count, 3, 9 * (JOINTS - 1), dtype=torch.float16),
        "weights": weights.half(),
        "kintree_table": torch.tensor([[-1, 0, 1, 1, 1], [0, 1, 2, 3, 4]]),
        "J_regressor": _sums(head, indices, head.joints[-1:], head.joint_basis[-1:]).expand(JOINTS, -1).contiguous(),
        "landmarks": _landmarks(head, indices),
        "expressiondeviations": _usual_expressions(),
    }


def _usual_expressions() -> Tensor:
    """(50,) root mean square of the expressions on a thousand photos of people to train on."""
    codes = [torch.from_numpy(still(person(seed), 0).expression[0]) for seed in TRAIN[:1000]]
    return torch.stack(codes).square().mean(0).sqrt().clamp(min=0.02)


def _landmarks(head: Head, indices: Tensor) -> Tensor:
    """(68, V) weights; not all landmarks are vertices of this mesh, and the eyes are not part of it."""
    basis = torch.cat([head.shape_basis, head.expression_basis], 2)
    return _sums(head, indices, head.template[head.landmarks], basis[head.landmarks])


def _sums(head: Head, indices: Tensor, place: Tensor, basis: Tensor) -> Tensor:
    """(K, V) weights of sums over the vertices that are K of the head's points for any shape, by ridge regression.

    Args:
        place: (K, 3) of the mean head; basis: (K, 3, 100 or 150), how they move with its shape, and its expression.
    """
    own = torch.cat([head.shape_basis, head.expression_basis], 2)[indices, :, : basis.shape[2]]
    shapes = torch.cat([head.template[indices][..., None], own], 2).flatten(1).double()  # (V, 3 · (1 + basis))
    wanted = torch.cat([place[..., None], basis], 2).flatten(1).double()
    columns = torch.cat([shapes, torch.ones(len(indices), 1).double()], 1)  # weights that add up to 1
    target = torch.cat([wanted, torch.ones(len(wanted), 1).double()], 1)
    gram = columns.T @ columns
    gram = gram + 1e-6 * gram.diagonal().mean() * torch.eye(len(gram)).double()
    return (columns @ torch.linalg.solve(gram, target.T)).T.float().contiguous()


def _largest_piece(faces: Tensor) -> tuple[Tensor, Tensor]:
    """Vertices of the largest connected part (sorted), and its faces in their numbers."""
    label = torch.arange(int(faces.max()) + 1)
    while True:
        smallest = label[faces].amin(1)
        new = label.clone()
        for corner in range(3):
            new.scatter_reduce_(0, faces[:, corner], smallest, "amin")
        if torch.equal(new, label):
            break
        label = new
    of_face = label[faces[:, 0]]
    faces = faces[of_face == of_face.mode().values]
    indices, numbered = faces.unique(return_inverse=True)
    return indices, numbered


def _decimated(points: Tensor, faces: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """About `count` of the points that keep the surface best, and the faces between them."""
    import fast_simplification

    if len(points) <= count:
        return torch.arange(len(points)), faces
    borders = 2 * len(points) - len(faces)  # a closed surface has twice as many faces as vertices
    reduced, triangles = fast_simplification.simplify(
        points.numpy(), faces.int().numpy(), target_count=int(2 * count - borders * (count / len(points)) ** 0.5)
    )
    distance = torch.cdist(torch.from_numpy(reduced).double(), points.double())
    chosen = torch.full((len(reduced),), -1)
    for _ in range(len(reduced)):  # the closest pair first, so that no point is taken twice
        flat = int(distance.argmin())
        row, column = divmod(flat, len(points))
        chosen[row] = column
        distance[row], distance[:, column] = torch.inf, torch.inf
    return chosen, torch.from_numpy(triangles).long()


def _up(fine: Tensor, coarse: Tensor, faces: Tensor) -> Transform:
    """Fine vertices as barycentric sums of the coarse triangles' corners that they are closest to."""
    import trimesh

    mesh = trimesh.Trimesh(coarse.numpy(), faces.numpy(), process=False)
    closest, _, triangle = trimesh.proximity.closest_point_naive(mesh, fine.numpy())
    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[triangle], closest)
    weights = torch.from_numpy(weights).float().clamp(0, 1)
    weights = weights / weights.sum(1, keepdim=True)
    rows = torch.arange(len(fine)).repeat_interleave(3)
    return rows, faces[torch.from_numpy(triangle)].flatten(), weights.flatten(), (len(fine), len(coarse))


if __name__ == "__main__":
    main()
