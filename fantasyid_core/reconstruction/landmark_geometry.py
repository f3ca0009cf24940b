"""Geometry of `landmark_fit`: projection of a face model's points, its Jacobian, and initial parameters."""

from typing import NamedTuple

import torch
from torch import Tensor

from .flame import axis_angle_to_matrix

_YAWS, _PITCHES = (-75, -50, -25, 0, 25, 50, 75), (-36, -12, 12, 36)
_TURN_PRIOR = 0.02  # few landmarks with some noise can look like a strongly turned head; most heads are not


class Problem(NamedTuple):
    """P people, N photos each, L landmarks in each."""

    mean: Tensor
    """(L, 3) the model's points at rest."""
    shape_basis: Tensor
    """(L, 3, S)"""
    expression_basis: Tensor
    """(L, 3, E)"""
    observed: Tensor
    """(P, N, L, D) px, y down; D = 2, or 3 with the depth that grows away from the viewer and begins anywhere."""
    weight: Tensor
    """(P, N, L, D) 1 / variance."""
    inverse_focal: Tensor
    """(P, N) 1 / focal length in px; 0: weak perspective."""
    expected_shape: Tensor
    """(P, S), about which shapes are sought."""
    certainty: float
    """1 / variance of a shape's component about the expected."""


class FitParameters(NamedTuple):
    """The unknowns; see `landmark_fit.Fit`. The shift (P, N, D) has a depth where landmarks have one."""

    shape: Tensor
    expression: Tensor
    rotation: Tensor
    log_scale: Tensor
    shift: Tensor


def project(posed: Tensor, scale: Tensor, shift: Tensor, inverse_focal: Tensor) -> Tensor:
    """Points (P, N, L, 3) of turned heads → px (P, N, L, 2)."""
    scale = scale[..., None, None]
    perspective = 1 / (1 - inverse_focal[..., None, None] * scale * posed[..., 2:])
    return perspective * (shift[..., None, :] + scale * posed[..., :2] * posed.new_tensor([1, -1]))


def residual(problem: Problem, parameters: FitParameters) -> Tensor:
    """Projected points less landmarks, (P, N, L, D) px."""
    posed, scale = _posed_points(problem, parameters), parameters.log_scale.exp()
    projected = project(posed, scale, parameters.shift[..., :2], problem.inverse_focal)
    if problem.observed.shape[-1] == 3:
        depth = parameters.shift[..., None, 2:] - scale[..., None, None] * posed[..., 2:]
        projected = torch.cat([projected, depth], -1)
    return projected - problem.observed


def jacobian(problem: Problem, parameters: FitParameters) -> Tensor:
    """Of the residual by shape, expression, a further turn of the head (3), the scale's logarithm and the shift (D).

    Returns:
        (P, N, D L, S + E + 4 + D).
    """
    posed, scale = _posed_points(problem, parameters), parameters.log_scale.exp()[..., None, None]
    x, y, z = posed.unbind(-1)
    zero = torch.zeros_like(x)
    rotation_generator = torch.stack([zero, z, -y, -z, zero, x, y, -x, zero], -1).unflatten(-1, (3, 3))
    bases = torch.cat([problem.shape_basis, problem.expression_basis], -1)
    by_shape = torch.einsum("pnxy,lyk->pnlxk", parameters.rotation, bases)
    velocity = torch.cat([by_shape, rotation_generator], -1)  # (P, N, L, 3, S + E + 3)

    flip = posed.new_tensor([1, -1])
    inverse_focal = problem.inverse_focal[..., None, None] * scale
    perspective = 1 / (1 - inverse_focal * posed[..., 2:])
    enlarged = scale * posed[..., :2] * flip
    by_depth = (perspective.square() * inverse_focal * (parameters.shift[..., None, :2] + enlarged))[..., None]
    perspective_column = perspective[..., None]
    in_plane = perspective_column * scale[..., None] * velocity[..., :2, :] * flip[:, None]
    by_points = in_plane + by_depth * velocity[..., 2:, :]
    by_scale = perspective_column * enlarged[..., None] + by_depth * posed[..., 2:, None]
    by_shift = perspective_column * torch.eye(2).to(perspective_column)
    columns = torch.cat([by_points, by_scale, by_shift], -1)
    if problem.observed.shape[-1] == 3:
        of_depth = -scale[..., None] * torch.cat([velocity[..., 2:, :], posed[..., 2:, None]], -1)
        of_depth = torch.nn.functional.pad(of_depth, (0, 2))
        columns = torch.cat([columns, of_depth], -2)
        by_depth_shift = columns.new_tensor([0, 0, 1])[:, None].expand(*columns.shape[:-1], 1)
        columns = torch.cat([columns, by_depth_shift], -1)
    return columns.flatten(2, 3)


def start(problem: Problem) -> FitParameters:
    """The mean face in the best of a grid of turns; scale, roll and shift of each are a complex linear regression."""
    people, photos = problem.weight.shape[:2]
    weight = problem.weight[..., 0]
    yaw, pitch = (problem.mean.new_tensor(degrees).deg2rad() for degrees in (_YAWS, _PITCHES))
    yaw, pitch = torch.cartesian_prod(yaw, pitch).unbind(-1)
    zero = torch.zeros_like(yaw)
    rotations = _rotation(zero, yaw, zero) @ _rotation(pitch, zero, zero)  # (G, 3, 3)
    projected = problem.mean @ rotations.mT
    projected = torch.complex(projected[..., 0], -projected[..., 1])  # (G, L)
    observed = torch.view_as_complex(problem.observed[..., :2].contiguous())[:, :, None]  # (P, N, 1, L)

    share = weight[:, :, None] / weight.sum(-1)[..., None, None].clamp(min=1e-30)
    projected_mean, observed_mean = ((share * x).sum(-1, keepdim=True) for x in (projected, observed))
    projected, observed = projected - projected_mean, observed - observed_mean
    projected_variance, observed_variance = ((share * x.abs().square()).sum(-1) for x in (projected, observed))
    factor = (share * projected.conj() * observed).sum(-1) / projected_variance  # (P, N, G), scale · e^(i roll)
    explained = factor.abs().square() * projected_variance / observed_variance
    cost = 1 - explained + _TURN_PRIOR * (yaw.square() + pitch.square())

    best = cost.argmin(-1, keepdim=True)
    factor, projected_mean = factor.gather(-1, best)[..., 0], projected_mean[..., 0].gather(-1, best)[..., 0]
    roll = factor.angle()
    shift = torch.view_as_real(observed_mean[..., 0, 0] - factor * projected_mean)
    depth = (share[:, :, 0, :, None] * problem.observed[..., 2:]).sum(2)
    return FitParameters(
        problem.expected_shape,
        torch.zeros_like(problem.expression_basis[0, 0]).expand(people, photos, -1),
        _rotation(torch.zeros_like(roll), torch.zeros_like(roll), -roll) @ rotations[best[..., 0]],
        factor.abs().log(),
        torch.cat([shift, depth], -1),
    )


def _posed_points(problem: Problem, parameters: FitParameters) -> Tensor:
    """The model's points (P, N, L, 3) of the turned heads."""
    points = problem.mean + torch.einsum("lxs,ps->plx", problem.shape_basis, parameters.shape)[:, None]
    points = points + torch.einsum("lxe,pne->pnlx", problem.expression_basis, parameters.expression)
    return points @ parameters.rotation.mT


def _rotation(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return axis_angle_to_matrix(torch.stack([x, y, z], -1))
