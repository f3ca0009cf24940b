"""Where a face model of another topology (FLAME's) has the 478 dense landmarks: found by registration, once per model.

No file of FLAME's may be shipped, so the pack's own face comes to the model: its points, with their 100 shapes, are
laid on the template's surface by the five landmarks that both know and by the surface itself (iterated closest points,
point to plane, a standard normal prior on the shapes). A landmark is then the nearest place on the surface.
"""

import logging
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from ..detection import dense_features
from .flame import FIVE, Flame
from .landmark_fit import at_landmarks

log = logging.getLogger(__name__)

_IRISES_NOSE_MOUTH = (468, 473, 1, 61, 291)  # of the dense landmarks, as the detector's five
_ROUNDS = 12
_NEAR, _KNOWN = 0.001, 0.002  # metres, standard deviations of a distance from the surface, and of the five landmarks
_FARTHEST = 0.006  # metres, the median distance from the surface at which the model is no face
_CANDIDATES = 16  # triangles by their middles, among which the nearest is sought
_SURROUNDINGS = 0.03  # metres about the points, outside of which triangles are left out
_registered: WeakKeyDictionary[Flame, Flame] = WeakKeyDictionary()


def with_known_points(model: Flame) -> Flame:
    """The model with its dense landmarks; as it is where it has them, or where they cannot be found."""
    if model.dense_landmarks is not None or model.landmarks is None:
        return model
    if model not in _registered:
        _registered[model] = _with_registered(model)
    return _registered[model]


def _with_registered(model: Flame) -> Flame:
    weights, distance = register(model)
    if not distance.median() < _FARTHEST:
        log.warning("FantasyID: the dense landmarks do not fit this face model; the detector's five are used.")
        return model
    arrays = dense_features.load(model.template.device)
    log.info("FantasyID: dense landmarks registered, %.1f mm from the surface.", 1000 * float(distance.mean()))
    return replace(
        model,
        dense_landmarks=weights,
        dense_deviations=torch.hypot(arrays["pointdeviations"], distance),
        dense_errors=arrays["pointerrors"],
    )


@torch.no_grad()
def register(model: Flame) -> tuple[Tensor, Tensor]:
    """Weights (478, V) of all vertices that give the dense landmarks, and (478,) metres from the registered points."""
    arrays = dense_features.load(model.template.device)
    assert model.landmarks is not None
    known = at_landmarks(model.landmarks[:FIVE], model.template)
    scale, turn, shift = _similarity(arrays["rest"][list(_IRISES_NOSE_MOUTH)], known)
    points = scale * arrays["rest"] @ turn.mT + shift
    shapes = scale * torch.einsum("xy,lyk->lxk", turn, arrays["shapes"])
    low, high = points.amin(0) - _SURROUNDINGS, points.amax(0) + _SURROUNDINGS
    near = ((model.template > low) & (model.template < high))[model.faces].all(-1).all(1)
    faces = model.faces[near]
    corners = model.template[faces]
    normals = F.normalize(torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), dim=-1)
    placed = points
    for _ in range(_ROUNDS):
        triangle, weights = _nearest(placed, corners)
        surface = torch.einsum("lk,lkx->lx", weights, corners[triangle])
        placed = _bent(points, shapes, surface, normals[triangle], known)
    triangle, weights = _nearest(placed, corners)
    distance = (torch.einsum("lk,lkx->lx", weights, corners[triangle]) - placed).norm(dim=-1)
    dense = weights.new_zeros(len(points), len(model.template))
    return dense.scatter_add(1, faces[triangle], weights), distance


def _bent(points: Tensor, shapes: Tensor, surface: Tensor, normals: Tensor, known: Tensor) -> Tensor:
    """Points of the face whose shape, size and place bring them nearest to planes through `surface`."""
    middle = points.mean(0)
    x, y, z = (points - middle).unbind(-1)
    nil, one = torch.zeros_like(x), torch.ones_like(x)
    ways = ((one, nil, nil), (nil, one, nil), (nil, nil, one), (x, y, z), (nil, -z, y), (z, nil, -x), (-y, x, nil))
    moves = torch.cat([shapes, torch.stack([torch.stack(way, -1) for way in ways], -1)], -1)
    five = list(_IRISES_NOSE_MOUTH)
    columns = torch.cat([torch.einsum("lx,lxk->lk", normals, moves) / _NEAR, moves[five].flatten(0, 1) / _KNOWN])
    target = torch.cat([(normals * (surface - points)).sum(-1) / _NEAR, (known - points[five]).flatten() / _KNOWN])
    prior = torch.ones_like(columns[0])
    prior[shapes.shape[-1] :] = 1e-6
    found = torch.linalg.solve((columns.mT @ columns + prior.diag()).double(), (columns.mT @ target).double())
    return points + moves @ found.to(points)


def _nearest(points: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Of points (L, 3) the nearest of triangles (F, 3, 3), (L,), and the barycentric weights (L, 3) of the place."""
    apart = torch.cdist(points, corners.mean(1))
    candidates = apart.topk(min(_CANDIDATES, len(corners)), largest=False).indices
    a, b, c = corners[candidates].unbind(2)  # (L, C, 3)
    u, v, away = b - a, c - a, points[:, None] - a
    uu, uv, vv, du, dv = ((x * y).sum(-1) for x, y in ((u, u), (u, v), (v, v), (away, u), (away, v)))
    area = (uu * vv - uv * uv).clamp(min=1e-20)
    p, q = (vv * du - uv * dv) / area, (uu * dv - uv * du) / area
    inside = (p >= 0) & (q >= 0) & (p + q <= 1)
    along = ((dv - du - uv + uu) / (uu - 2 * uv + vv).clamp(min=1e-20)).clamp(0, 1)  # from b to c
    on_u, on_v, nil = (du / uu.clamp(min=1e-20)).clamp(0, 1), (dv / vv.clamp(min=1e-20)).clamp(0, 1), p.new_zeros(())
    pairs = ((p, q), (on_u, nil.expand_as(p)), (nil.expand_as(p), on_v), (1 - along, along))
    places = torch.stack([torch.stack(pair, -1) for pair in pairs], 2)  # (L, C, 4, 2)
    apart = (places[..., :1] * u[:, :, None] + places[..., 1:] * v[:, :, None] - away[:, :, None]).norm(dim=-1)
    apart[..., 0] = apart[..., 0].masked_fill(~inside, torch.inf)
    best = apart.flatten(1).argmin(1)
    rows = torch.arange(len(points), device=points.device)
    chosen = places.flatten(1, 2)[rows, best]
    return candidates[rows, best // 4], torch.cat([1 - chosen.sum(-1, keepdim=True), chosen], -1)


def _similarity(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, rotation (3, 3) and shift that bring points (K, 3) nearest to others (Umeyama 1991)."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, strength, v = torch.linalg.svd(b.mT @ a)
    sign = torch.ones_like(strength)
    sign[-1] = torch.linalg.det(u @ v).sign()
    turn = u @ sign.diag() @ v
    scale = (strength * sign).sum() / a.square().sum()
    return scale, turn, target.mean(0) - scale * turn @ source.mean(0)
