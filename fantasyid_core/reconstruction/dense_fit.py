"""Dense landmarks in photos or video frames → shape, expression, pose and camera of a face model."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MeshError
from .dense_shape import points_at_rest
from .dense_transfer import with_known_points
from .flame import Flame
from .landmark_fit import COMPONENTS, ITERATIONS, Fit, at_landmarks, fit

# Points are off together in more ways than the model knows: 478 tell no more than a tenth as many independent ones.
_REPEATED = 3.0
# Of a component of the shape from what the shape network sees, with one photo. What the points are off by repeats from
# photo to photo of a person: N of them must not weigh more against the network than one.
_SHAPE_DEVIATION = 0.4
_REST_DEVIATION = 5e-4  # metres, of the points at rest from those of a face model's shape


def fit_dense(model: Flame, points: Tensor, *, confidence: Tensor | None = None, iterations: int = ITERATIONS) -> Fit:
    """Fit a face model to dense landmarks; P people with N photos or frames each, all of one shape.

    Points that the head's own turn hides do not count, and such as lie far off the fit count less. With their depths
    the shape is what `dense_shape` sees in all photos, and the fit adds little to it; without them it is the fit's.

    Args:
        model: a face model that knows its `dense_landmarks`, or its five (see `dense_transfer`).
        points: (P, N, 478, 2 or 3) px as `detection.dense_landmarks.read` finds them.
        confidence: (P, N) 0…1, how much each photo counts; all fully if None.

    Raises:
        MeshError: it is not known where the face model has these points, or no face fits.
    """
    model = with_known_points(model)
    known, deviation = known_points(model)
    flat = points[..., :2].to(model.template.device)
    places = at_landmarks(known, model.template)
    expected_shape, shape_deviation = None, 1.0
    if points.shape[-1] == 3:
        rest = points_at_rest(points.to(places), confidence)
        expected_shape, shape_deviation = _shape(model, known, rest), _SHAPE_DEVIATION * points.shape[1] ** -0.5
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
        expected_shape=expected_shape,
        shape_deviation=shape_deviation,
        iterations=iterations,
    )


def known_points(model: Flame) -> tuple[Tensor, Tensor]:
    """Where a face model has the dense landmarks and how far off they are: its weights (478, V) and deviations (478,).

    Raises:
        MeshError: it is not known.
    """
    model = with_known_points(model)
    if model.dense_landmarks is None or model.dense_deviations is None:
        raise MeshError(
            f"It is not known where this face model's {len(model.template)} vertices have the 478 dense landmarks: use "
            "FLAME, the face model of FantasyID-nano, or a .safetensors face model with the tensors 'denselandmarks' "
            "and 'densedeviations'."
        )
    return model.dense_landmarks, model.dense_deviations


def _shape(model: Flame, known: Tensor, rest: Tensor) -> Tensor:
    """Codes (P, S) of a model with its landmarks `known` (478, V) that come nearest to points at rest (P, 478, 3),
    wherever these are and however they are turned.
    """
    places, basis = (at_landmarks(known, x) for x in (model.template, model.shape_basis[..., : COMPONENTS[0]]))
    middle = places.mean(0)
    x, y, z = (places - middle).unbind(-1)
    nil = torch.zeros_like(x)
    turns = torch.stack([torch.stack(way, -1) for way in ((nil, -z, y), (z, nil, -x), (-y, x, nil))], -1)
    columns = torch.cat([basis - basis.mean(0), turns], -1).flatten(0, 1) / _REST_DEVIATION
    target = (rest - rest.mean(1, keepdim=True) - (places - middle)).flatten(1) / _REST_DEVIATION
    prior = torch.ones_like(columns[0])
    prior[basis.shape[-1] :] = 1e-6
    normal = (columns.mT @ columns + prior.diag()).double()
    return torch.linalg.solve(normal, (columns.mT @ target.mT).double()).mT[:, : basis.shape[-1]].to(places)


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
