"""Ground truth of synthetic photos in the networks' terms: vertex distances, axis-angle poses, DECA's cameras."""

import torch
from torch import Tensor

from fantasyid_core.reconstruction.flame import Flame

from ..people.head import load as load_head
from ..people.head import rotation


def vertex_gram(basis: Tensor) -> Tensor:
    """Basis (V, 3, K), metres → (K, K) Gram matrix: c · gram · c is the mean square vertex displacement, mm²."""
    flat = basis.flatten(0, 1) * 1000
    return flat.T @ flat / len(basis)


def mean_squared_mm(difference: Tensor, gram: Tensor) -> Tensor:
    """Codes (B, K) → mean square of the vertices' distances, mm²."""
    return ((difference @ gram) * difference).sum(1).mean()


def variance_explained(predicted: Tensor, true: Tensor, gram: Tensor) -> float:
    """Variance explained (R²) of the vertices by predicted codes (N, K): 1 all, 0 as the mean code."""
    return (1 - mean_squared_mm(predicted - true, gram) / mean_squared_mm(true.mean(0) - true, gram)).item()


def axis_angle(pose: Tensor) -> Tensor:
    """Degrees of yaw, pitch and roll (B, 3), as `people` has them → axis-angle (B, 3), radians."""
    matrix = rotation(pose)
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
    return axis / (2 * torch.sin(angle).clamp(min=1e-4))[:, None] * angle[:, None]  # the axis of no rotation is zero


class Camera:
    """True weak perspective cameras of photos, in DECA's convention, for the face model's pose about its root joint."""

    def __init__(self, face: Flame, device: torch.device):
        head = load_head(str(device))
        root = face.joint_regressor[0].to(device)
        self._template = head.template[head.landmarks]
        self._shape, self._expression = (b[head.landmarks] for b in (head.shape_basis, head.expression_basis))
        self._root = root @ face.template.to(device)
        self._root_basis = torch.einsum("v,vdk->dk", root, face.shape_basis[..., :100].to(device))

    def fit(self, shape: Tensor, expression: Tensor, pose: Tensor, landmarks: Tensor, size: int) -> Tensor:
        """Codes (B, …), pose (B, 3) degrees and landmarks (B, 68, 2) px → scale s and shift t (B, 3): least squares of
        s · (x + t) against the landmarks in −1…1 of the picture, y up.
        """
        points = self._template + torch.einsum("vdk,bk->bvd", self._shape, shape)
        points = points + torch.einsum("vdk,bk->bvd", self._expression, expression)
        root = (self._root + shape @ self._root_basis.T)[:, None]
        posed = ((points - root) @ rotation(pose).mT + root)[..., :2]
        target = (2 * landmarks + 1) / size - 1
        target = torch.stack([target[..., 0], -target[..., 1]], -1)
        posed_mean, target_mean = posed.mean(1, keepdim=True), target.mean(1, keepdim=True)
        scale = ((posed - posed_mean) * (target - target_mean)).sum((1, 2)) / (posed - posed_mean).square().sum((1, 2))
        shift = (target_mean / scale[:, None, None] - posed_mean)[:, 0]
        return torch.cat([scale[:, None], shift], 1)
