"""What is true of a synthetic person's photo, as networks are asked for it: vertex distances, turns, DECA's cameras."""

import torch
from torch import Tensor

from fantasyid_core.reconstruction.flame import Flame

from ..people.head import load as load_head
from ..people.head import rotation


def moves(basis: Tensor) -> Tensor:
    """Basis (V, 3, K), metres → (K, K): c · moves · c is the mean square of how far a vertex moves, mm²."""
    flat = basis.flatten(0, 1) * 1000
    return flat.T @ flat / len(basis)


def squared_mm(difference: Tensor, moved: Tensor) -> Tensor:
    """Codes (B, K) → mean square of the vertices' distances, mm²."""
    return ((difference @ moved) * difference).sum(1).mean()


def variance_explained(predicted: Tensor, true: Tensor, moved: Tensor) -> float:
    """Share of the variance of where vertices lie that codes (N, K) explain of the true ones: 1 all, 0 the mean's."""
    return (1 - squared_mm(predicted - true, moved) / squared_mm(true.mean(0) - true, moved)).item()


def axis_angle(turn: Tensor) -> Tensor:
    """Degrees of yaw, pitch and roll (B, 3), as `people` has them → axis-angle (B, 3), radians."""
    matrix = rotation(turn)
    cosine = ((matrix.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1)
    angle = torch.acos(cosine)
    axis = torch.stack(
        [
            matrix[:, 2, 1] - matrix[:, 1, 2],
            matrix[:, 0, 2] - matrix[:, 2, 0],
            matrix[:, 1, 0] - matrix[:, 0, 1],
        ],
        1,
    )
    return axis / (2 * torch.sin(angle).clamp(min=1e-4))[:, None] * angle[:, None]  # no turn: axis is zero


class Camera:
    """True weak perspective cameras of photos, in DECA's convention, for the face model's pose about its root joint."""

    def __init__(self, face: Flame, device: torch.device):
        head = load_head(str(device))
        root = face.joint_regressor[0].to(device)
        self._template = head.template[head.landmarks]
        self._shape, self._expression = (b[head.landmarks] for b in (head.shape_basis, head.expression_basis))
        self._root = root @ face.template.to(device)
        self._root_moves = torch.einsum("v,vdk->dk", root, face.shape_basis[..., :100].to(device))

    def fit(self, shape: Tensor, expression: Tensor, pose: Tensor, landmarks: Tensor, size: int) -> Tensor:
        """Codes (B, …), pose (B, 3) degrees and landmarks (B, 68, 2) px → scale s and shift t (B, 3): least squares of
        s · (x + t) against the landmarks in −1…1 of the picture, y up.
        """
        points = self._template + torch.einsum("vdk,bk->bvd", self._shape, shape)
        points = points + torch.einsum("vdk,bk->bvd", self._expression, expression)
        root = (self._root + shape @ self._root_moves.T)[:, None]
        turned = ((points - root) @ rotation(pose).mT + root)[..., :2]
        seen = (2 * landmarks + 1) / size - 1
        seen = torch.stack([seen[..., 0], -seen[..., 1]], -1)
        middle, seen_middle = turned.mean(1, keepdim=True), seen.mean(1, keepdim=True)
        scale = ((turned - middle) * (seen - seen_middle)).sum((1, 2)) / (turned - middle).square().sum((1, 2))
        shift = (seen_middle / scale[:, None, None] - middle)[:, 0]
        return torch.cat([scale[:, None], shift], 1)
