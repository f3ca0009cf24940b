"""Dense landmarks in photos or video frames → shape, expression, pose and camera of a face model."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MeshError
from .flame import Flame
from .landmark_fit import ITERATIONS, Fit, at_landmarks, fit

# Points are off together in more ways than the model knows: 478 tell no more than a tenth as many independent ones.
_REPEATED = 3.0


def fit_dense(model: Flame, points: Tensor, *, confidence: Tensor | None = None, iterations: int = ITERATIONS) -> Fit:
    """Fit a face model to dense landmarks; P people with N photos or frames each, all of one shape.

    Points that the head's own turn hides do not count, and such as lie far off the fit count less.

    Args:
        model: a face model that knows its `dense_landmarks`.
        points: (P, N, 478, 2 or 3) px as `detection.dense_landmarks.read` finds them; their depth is left aside.
        confidence: (P, N) 0…1, how much each photo counts; all fully if None.

    Raises:
        MeshError: it is not known where the face model has these points, or no face fits.
    """
    known, deviation = known_points(model)
    flat = points[..., :2].to(model.template.device)
    places = at_landmarks(known, model.template)
    certain = (deviation.min() / deviation).square().expand(flat.shape[:3])
    if confidence is not None:
        certain = certain * confidence.to(certain)[..., None]
    return fit(
        model,
        flat,
        known,
        confidence=certain,
        noise=_REPEATED * deviation.min() * _px_per_metre(flat, places),
        expression_deviations=model.expression_deviations,
        normals=_normals(model, places),
        error_basis=model.dense_errors,
        iterations=iterations,
    )


def known_points(model: Flame) -> tuple[Tensor, Tensor]:
    """Where a face model has the dense landmarks and how far off they are: its weights (478, V) and deviations (478,).

    Raises:
        MeshError: it is not known.
    """
    if model.dense_landmarks is None or model.dense_deviations is None:
        raise MeshError(
            f"It is not known where this face model's {len(model.template)} vertices have the 478 dense landmarks: use "
            "the face model of FantasyID-nano, or a .safetensors face model with the tensors 'denselandmarks' and "
            "'densedeviations'."
        )
    return model.dense_landmarks, model.dense_deviations


def _px_per_metre(points: Tensor, places: Tensor) -> Tensor:
    """(P, N) by how far the points are spread in the picture, and on the frontal face."""

    def spread(flat: Tensor) -> Tensor:
        return (flat - flat.mean(-2, keepdim=True)).square().sum(-1).mean(-1).sqrt()

    return spread(points) / spread(places[..., :2])


def _normals(model: Flame, places: Tensor) -> Tensor:
    """(478, 3) of the vertices that are nearest to the points."""
    corners = model.template[model.faces]
    across = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = torch.zeros_like(model.template)
    for corner in range(3):
        normals = normals.index_add(0, model.faces[:, corner], across)
    return F.normalize(normals[torch.cdist(places, model.template).argmin(1)], dim=-1)
