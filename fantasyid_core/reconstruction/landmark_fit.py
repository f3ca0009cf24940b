"""Landmarks in photos → shape, expression, pose and camera of a face model, without any network.

Levenberg–Marquardt on a linear face seen by a scaled camera. Both codes have a standard normal prior, so that any
number of landmarks gives a face. All photos of a person share one shape: the other unknowns of every photo are
eliminated (a Schur complement), which adds up what the photos know of the shape, each with the weight of its
information: a profile says much of the nose and nothing of the width, and counts accordingly.

How large a head is no photo shows (a larger one further away looks the same). The shape in which the whole face grows
is therefore left out of the fit: it would follow the noise, the further the more photos there are.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import MeshError
from .flame import axis_angle_to_matrix
from .landmark_geometry import FitParameters, Problem, jacobian, project, residual, start

ITERATIONS = 12
COMPONENTS = (100, 50)
"""Of shape and expression that are fitted at most, as many as DECA has."""
DEPTH_NOISE = 2.0
_ROUNDS = 3  # after each the landmarks' weights are taken anew
_HIDDEN, _SHOWN = 0.05, 0.3  # cosines between a surface's normal and the view
_TAIL = 4.0  # mean squared residuals at which a landmark counts half
NOISE = 0.03
"""Standard deviation of a detector's landmarks, as a share of their root mean square distance from their middle."""

# Few points could be enlarged by absurd shapes, hence the ridge; a basis that cannot enlarge the face is left alone.
_SIZE_RIDGE, _SIZE_MISFIT = 0.1, 0.25


class LinearFace(Protocol):
    """What the fit needs of a face model: `flame.Flame` and `people.head.Head` have it.

    Attributes:
        template: (V, 3) metres, y up, z out of the face.
        shape_basis: (V, 3, S) and expression_basis (V, 3, E), per standard deviation.
    """

    @property
    def template(self) -> Tensor: ...

    @property
    def shape_basis(self) -> Tensor: ...

    @property
    def expression_basis(self) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Fit:
    """P people with N photos each, float32.

    Attributes:
        shape: (P, S) standard deviations.
        expression: (P, N, E) standard deviations.
        rotation: (P, N, 3, 3) of the head, about the model's origin.
        scale: (P, N) px per metre at the origin's depth.
        shift: (P, N, 2) px, where the origin is.
        bend: (P, N) 1 / focal length in px; 0: weak perspective.
        error: (P, N) root mean square distance of the landmarks from their fit, px.
    """

    shape: Tensor
    expression: Tensor
    rotation: Tensor
    scale: Tensor
    shift: Tensor
    inverse_focal: Tensor
    error: Tensor

    def in_photo(self, vertices: Tensor) -> Tensor:
        """Vertices (P, N, V, 3) of the unturned heads → px of their photos, z growing away from the viewer.

        z is scaled as the picture is at the origin's depth, where it is 0.
        """
        posed = vertices @ self.rotation.mT
        depth = -posed[..., 2:] * self.scale[..., None, None]
        return torch.cat([project(posed, self.scale, self.shift, self.inverse_focal), depth], -1)


@torch.no_grad()
def fit(
    model: LinearFace,
    landmarks: Tensor,
    points: Tensor,
    *,
    confidence: Tensor | None = None,
    noise: Tensor | float | None = None,
    focal: Tensor | float | None = None,
    expression_deviations: Tensor | None = None,
    normals: Tensor | None = None,
    error_basis: Tensor | None = None,
    expected_shape: Tensor | None = None,
    shape_deviation: float = 1.0,
    depth_noise: float = DEPTH_NOISE,
    iterations: int = ITERATIONS,
) -> Fit:
    """Fit a face model to landmarks; P people with N photos each at once, on the landmarks' device (MPS: on the CPU).

    Args:
        landmarks: (P, N, L, 2) px, y down, at least three in a photo; or (P, N, L, 3) with their depth in px, which
            grows away from the viewer and may begin anywhere.
        points: what the landmarks mark: (L,) int64, the model's vertices, or (L, V) float, weights of all vertices.
        confidence: (P, N, 1 or L) 0…1: how much a photo, or a landmark of it, counts; all fully if None.
        noise: standard deviation of the landmarks, px: a number or (P, N). If None, `NOISE` of the face's size.
        focal: focal length in px where it is known, a number or (P, N); the landmarks are then counted from the
            picture's middle. If None, a weak perspective (a very long lens) as DECA has it.
        expression_deviations: (E,) how far from 0 expressions usually are, where that is not 1.
        normals: (L, 3) of the surface where the landmarks are, on the head at rest. What the head's own turn hides
            does not count then, and what lies far off the fit counts less. All landmarks count fully if None.
        error_basis: (L, 3, K) metres on the head at rest, ways in which the landmarks of a photo are off together, per
            standard deviation. They are found as expressions are, and left out of the result.
        expected_shape: (P, ≤ S) about which the shapes are sought; the mean face if None.
        shape_deviation: how far a component usually is from the expected.
        depth_noise: standard deviation of a depth, in terms of that of a place in the picture.

    Raises:
        MeshError: shapes that do not fit each other, or landmarks that are not finite or all in one place.
    """
    problem = _problem(model, landmarks, points, confidence, noise, focal, depth_noise)
    deviations = problem.mean.new_ones(problem.expression_basis.shape[-1])
    if expression_deviations is not None:
        deviations = expression_deviations[: len(deviations)].to(deviations)
    expression_basis = problem.expression_basis * deviations
    if error_basis is not None:
        expression_basis = torch.cat([expression_basis, error_basis.to(expression_basis)], -1)
    problem = problem._replace(expression_basis=expression_basis, certainty=shape_deviation**-2)
    if expected_shape is not None:
        problem.expected_shape[:, : expected_shape.shape[1]] = expected_shape[:, : problem.shape_basis.shape[-1]]
    parameters = start(problem)
    if normals is None:
        parameters = _minimise(problem, parameters, iterations)
    else:
        normals = normals.to(problem.mean)
        for _ in range(_ROUNDS):
            doubted = problem._replace(weight=problem.weight * _trust(problem, parameters, normals))
            parameters = _minimise(doubted, parameters, -(-iterations // _ROUNDS))
    error = residual(problem, parameters)[..., :2].square().sum(-1).mean(-1).sqrt()
    found = parameters._replace(
        expression=parameters.expression[..., : len(deviations)] * deviations,
        log_scale=parameters.log_scale.exp(),
        shift=parameters.shift[..., :2],
    )
    return Fit(*(x.float().to(landmarks.device) for x in (*found, problem.inverse_focal, error)))


def _minimise(problem: Problem, parameters: FitParameters, iterations: int) -> FitParameters:
    """Levenberg–Marquardt steps; of every person only those that bring it nearer are taken."""
    damping = torch.full_like(problem.observed[:, 0, 0, 0], 1e-3)
    cost = _cost(problem, parameters)
    for _ in range(iterations):
        proposed = _step(problem, parameters, damping)
        proposed_cost = _cost(problem, proposed)
        better = proposed_cost < cost  # NaN is not
        pairs = zip(proposed, parameters, strict=True)
        parameters = FitParameters(*(torch.where(_broadcast(better, old), new, old) for new, old in pairs))
        cost = torch.where(better, proposed_cost, cost)
        damping = torch.where(better, damping / 5, damping * 8).clamp(1e-9, 1e9)
    return parameters


def _trust(problem: Problem, parameters: FitParameters, normals: Tensor) -> Tensor:
    """(P, N, L, 1) 0…1: nothing where the head hides a landmark by its own turn, less where it lies far off the fit."""
    facing = (normals @ parameters.rotation.mT)[..., 2:]
    shown = ((facing - _HIDDEN) / (_SHOWN - _HIDDEN)).clamp(1e-4, 1)
    off = (problem.weight * residual(problem, parameters).square())[..., :2].sum(-1, keepdim=True)
    typical = (off * shown).sum(2, keepdim=True) / shown.sum(2, keepdim=True)
    return shown / (1 + off / (_TAIL * typical).clamp(min=1e-12))


def _problem(
    model: LinearFace,
    landmarks: Tensor,
    points: Tensor,
    confidence: Tensor | None,
    noise: Tensor | float | None,
    focal: Tensor | float | None,
    depth_noise: float,
) -> Problem:
    known = landmarks.ndim == 4 and landmarks.shape[2] == len(points) >= 3 and landmarks.shape[3] in (2, 3)
    if not known or 0 in landmarks.shape:
        raise MeshError(
            f"The landmarks have shape {tuple(landmarks.shape)} for {len(points)} points of the face model; expected "
            f"(people, photos, {len(points)}, 2 or 3), at least three. "
            "Use a face model that knows as many points as the detector."
        )
    # The system is small, but mixes metres, pixels and radians: float64, which MPS does not know.
    device = torch.device("cpu") if landmarks.device.type == "mps" else landmarks.device
    options = {"device": device, "dtype": torch.float64}
    observed = landmarks.to(**options)
    flat = observed[..., :2]
    spread = (flat - flat.mean(2, keepdim=True)).square().sum(-1).mean(-1).sqrt()
    if not (observed.isfinite().all() and (spread > 0).all()):
        raise MeshError(
            "The landmarks are not finite, or all in one place: no face can be fitted to them. "
            "Use a photo on which the face is larger, or draw its box by hand."
        )
    sigma = NOISE * spread if noise is None else torch.as_tensor(noise, **options).expand_as(spread)
    weight = sigma[..., None].square().reciprocal().expand(observed.shape[:3])
    if confidence is not None:
        weight = weight * confidence.to(**options).clamp(min=1e-6)  # a photo that does not count still has a pose
    weight = weight[..., None] * weight.new_tensor([1, 1, depth_noise**-2])[: observed.shape[-1]]
    inverse_focal = torch.zeros_like(spread)
    if focal is not None:
        inverse_focal = 1 / torch.as_tensor(focal, **options).expand_as(spread)
    arrays = (model.template, model.shape_basis, model.expression_basis)
    mean, *bases = (at_landmarks(points, x).to(**options) for x in arrays)
    shape, expression = (basis[..., :count] for basis, count in zip(bases, COMPONENTS, strict=True))
    expected_shape = mean.new_zeros(len(observed), shape.shape[-1])
    return Problem(mean, _remove_size(mean, shape), expression, observed, weight, inverse_focal, expected_shape, 1.0)


def at_landmarks(points: Tensor, values: Tensor) -> Tensor:
    """The values (V, …) at the points that landmarks mark, (L, …)."""
    points = points.to(values.device)
    return torch.tensordot(points.to(values), values, 1) if points.is_floating_point() else values[points]


def _remove_size(mean: Tensor, basis: Tensor) -> Tensor:
    """The shapes' basis (L, 3, S) at points (L, 3) without the one shape in which the whole face grows, if any."""
    growth, ways = (mean - mean.mean(0)).flatten(), (basis - basis.mean(0)).flatten(0, 1)
    normal = ways.mT @ ways
    ridge = _SIZE_RIDGE * normal.diagonal().mean() * torch.eye(len(normal)).to(normal)
    shape = torch.linalg.solve(normal + ridge, ways.mT @ growth)
    can_grow = (ways @ shape - growth).norm() < _SIZE_MISFIT * growth.norm()
    shape = can_grow * torch.nn.functional.normalize(shape, dim=0)
    return basis - (basis @ shape)[..., None] * shape


def _cost(problem: Problem, parameters: FitParameters) -> Tensor:
    """(P,) twice the negative logarithm of the posterior, up to a constant."""
    misfit = (problem.weight * residual(problem, parameters).square()).sum((1, 2, 3))
    unusual = problem.certainty * (parameters.shape - problem.expected_shape).square().sum(-1)
    return misfit + unusual + parameters.expression.square().sum((1, 2))


def _step(problem: Problem, parameters: FitParameters, damping: Tensor) -> FitParameters:
    """A damped Gauss–Newton step: the shape from the sum of the photos' information, then the rest of every photo."""
    columns = jacobian(problem, parameters)
    weighted = columns * problem.weight.flatten(2)[..., None]
    normal = columns.mT @ weighted
    gradient = (weighted.mT @ residual(problem, parameters).flatten(2)[..., None])[..., 0]
    shapes, expressions = parameters.shape.shape[-1], parameters.expression.shape[-1]
    gradient[..., shapes : shapes + expressions] += parameters.expression
    own_normal = normal[..., shapes:, shapes:]
    prior = torch.zeros_like(gradient[0, 0, shapes:])
    prior[:expressions] = 1
    own_normal = _damped(own_normal + prior.diag(), damping[:, None])
    shared = normal[..., :shapes, shapes:]
    factor = torch.linalg.cholesky_ex(own_normal).L  # where it fails the step is not finite, and is refused
    eliminated = torch.cholesky_solve(torch.cat([shared.mT, gradient[..., shapes:, None]], -1), factor)
    information = normal[..., :shapes, :shapes] - shared @ eliminated[..., :-1]
    slope = gradient[..., :shapes] - (shared @ eliminated[..., -1:])[..., 0]
    total = _damped(information.sum(1) + problem.certainty * torch.eye(shapes).to(information), damping)
    unusual = problem.certainty * (parameters.shape - problem.expected_shape)
    change = -torch.linalg.solve_ex(total, slope.sum(1) + unusual).result
    own_step = -eliminated[..., -1] - (eliminated[..., :-1] @ change[:, None, :, None])[..., 0]
    expression, turn, log_scale, shift = own_step.split((expressions, 3, 1, parameters.shift.shape[-1]), -1)
    return FitParameters(
        parameters.shape + change,
        parameters.expression + expression,
        axis_angle_to_matrix(turn) @ parameters.rotation,
        parameters.log_scale + log_scale[..., 0],
        parameters.shift + shift,
    )


def _damped(normal: Tensor, damping: Tensor) -> Tensor:
    diagonal = normal.diagonal(dim1=-2, dim2=-1)
    return normal + torch.diag_embed(damping[..., None] * diagonal + 1e-12)


def _broadcast(chosen: Tensor, other: Tensor) -> Tensor:
    """(P,) with as many dimensions as `other`."""
    return chosen.reshape(-1, *[1] * (other.ndim - 1))
