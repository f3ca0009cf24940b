"""What `fitting` knows of heads and cameras: where a state's points are seen, how that changes, and where to start."""

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
    """(P, N, L, 2) px, y down."""
    weight: Tensor
    """(P, N, L) 1 / variance."""
    bend: Tensor
    """(P, N) 1 / focal length in px; 0: weak perspective."""


class State(NamedTuple):
    """The unknowns; see `fitting.Fit`."""

    shape: Tensor
    expression: Tensor
    rotation: Tensor
    log_scale: Tensor
    shift: Tensor


def see(turned: Tensor, scale: Tensor, shift: Tensor, bend: Tensor) -> Tensor:
    """Points (P, N, L, 3) of turned heads → px (P, N, L, 2)."""
    scale = scale[..., None, None]
    nearness = 1 / (1 - bend[..., None, None] * scale * turned[..., 2:])
    return nearness * (shift[..., None, :] + scale * turned[..., :2] * turned.new_tensor([1, -1]))


def residual(problem: Problem, state: State) -> Tensor:
    """Fit less landmarks, (P, N, L, 2) px."""
    return see(_turned(problem, state), state.log_scale.exp(), state.shift, problem.bend) - problem.observed


def jacobian(problem: Problem, state: State) -> Tensor:
    """Of the residual by shape, expression, a further turn of the head (3), the scale's logarithm and the shift (2).

    Returns:
        (P, N, 2 L, S + E + 6).
    """
    turned, scale = _turned(problem, state), state.log_scale.exp()[..., None, None]
    x, y, z = turned.unbind(-1)
    nil = torch.zeros_like(x)
    spin = torch.stack([nil, z, -y, -z, nil, x, y, -x, nil], -1).unflatten(-1, (3, 3))
    bases = torch.cat([problem.shape_basis, problem.expression_basis], -1)
    moved = torch.cat([torch.einsum("pnxy,lyk->pnlxk", state.rotation, bases), spin], -1)  # (P, N, L, 3, S + E + 3)

    flip = turned.new_tensor([1, -1])
    bend = problem.bend[..., None, None] * scale
    nearness = 1 / (1 - bend * turned[..., 2:])
    grown = scale * turned[..., :2] * flip
    by_depth = (nearness.square() * bend * (state.shift[..., None, :] + grown))[..., None]
    near = nearness[..., None]
    by_points = near * scale[..., None] * moved[..., :2, :] * flip[:, None] + by_depth * moved[..., 2:, :]
    by_scale = near * grown[..., None] + by_depth * turned[..., 2:, None]
    by_shift = near * torch.eye(2).to(near)
    return torch.cat([by_points, by_scale, by_shift], -1).flatten(2, 3)


def start(problem: Problem) -> State:
    """The mean face in the best of a grid of turns; scale, roll and shift of each are a complex linear regression."""
    people, photos = problem.weight.shape[:2]
    yaw, pitch = (problem.mean.new_tensor(degrees).deg2rad() for degrees in (_YAWS, _PITCHES))
    yaw, pitch = torch.cartesian_prod(yaw, pitch).unbind(-1)
    nil = torch.zeros_like(yaw)
    turns = _turn(nil, yaw, nil) @ _turn(pitch, nil, nil)  # (G, 3, 3)
    seen = problem.mean @ turns.mT
    seen = torch.complex(seen[..., 0], -seen[..., 1])  # (G, L)
    marks = torch.view_as_complex(problem.observed.contiguous())[:, :, None]  # (P, N, 1, L)

    share = problem.weight[:, :, None] / problem.weight.sum(-1)[..., None, None].clamp(min=1e-30)
    middle, mark_middle = ((share * x).sum(-1, keepdim=True) for x in (seen, marks))
    seen, marks = seen - middle, marks - mark_middle
    size, spread = ((share * x.abs().square()).sum(-1) for x in (seen, marks))
    factor = (share * seen.conj() * marks).sum(-1) / size  # (P, N, G), scale · e^(i roll)
    cost = 1 - factor.abs().square() * size / spread + _TURN_PRIOR * (yaw.square() + pitch.square())

    best = cost.argmin(-1, keepdim=True)
    factor, middle = factor.gather(-1, best)[..., 0], middle[..., 0].gather(-1, best)[..., 0]
    roll = factor.angle()
    return State(
        torch.zeros_like(problem.shape_basis[0, 0]).expand(people, -1),
        torch.zeros_like(problem.expression_basis[0, 0]).expand(people, photos, -1),
        _turn(torch.zeros_like(roll), torch.zeros_like(roll), -roll) @ turns[best[..., 0]],
        factor.abs().log(),
        torch.view_as_real(mark_middle[..., 0, 0] - factor * middle),
    )


def _turned(problem: Problem, state: State) -> Tensor:
    """The model's points (P, N, L, 3) of the turned heads."""
    points = problem.mean + torch.einsum("lxs,ps->plx", problem.shape_basis, state.shape)[:, None]
    points = points + torch.einsum("lxe,pne->pnlx", problem.expression_basis, state.expression)
    return points @ state.rotation.mT


def _turn(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return axis_angle_to_matrix(torch.stack([x, y, z], -1))
