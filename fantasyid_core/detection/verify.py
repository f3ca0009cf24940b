"""Verification: a candidate is a face if its surroundings show one at other sizes, and mirrored, as well.

A face is found in all of them, at nearly the same place; what only looks like one at one size and place is not
(measured: docs/detection.md). The mean of what is found is the better box and landmarks as well.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images import resize
from .detections import Detections, Detector, intersections

MAX_CANDIDATES = 64
SIZES = (128, 224)  # px of the surroundings, of which the face is about half
AROUND = 2.0
LEAST = 0.1
_SAME = 0.3  # intersection over union


def verify(photo: Tensor, candidates: Detections, detector: Detector, quarters: int = 0) -> Detections:
    """Candidates with the mean box, landmarks and score of four passes; a pass that misses one counts as score 0.

    Args:
        photo: (H, W, 3) float RGB 0…1.
        candidates: best score first; all but the first 64 are left out.
        detector: searches the surroundings.
        quarters: turns of 90° by which the surroundings are turned, see `torch.rot90`.
    """
    candidates = candidates[:MAX_CANDIDATES]
    if not len(candidates):
        return candidates
    boxes = candidates.boxes
    within = boxes.new_tensor([photo.shape[1], photo.shape[0]])
    sides = (candidates.sizes.amax(-1) * AROUND).clamp(1, float(within.max()))
    origins = (boxes[:, :2] + boxes[:, 2:] - sides[:, None]) / 2
    # Inside the photo as far as it fits: black beside a face that fills the picture would hide it.
    room = within - sides[:, None]
    origins = torch.where(room > 0, origins.clamp(min=0).minimum(room), room / 2)
    passes: list[list[Detections]] = [[] for _ in sides]
    for size in SIZES:
        around = [_surroundings(photo, *place, size) for place in zip(origins.tolist(), sides.tolist(), strict=True)]
        around = torch.rot90(torch.stack(around), quarters, (1, 2))
        found = detector(torch.cat([around, around.flip(2)]), LEAST)
        for i in range(len(candidates)):
            for others in (found[i], found[i + len(candidates)].mirrored(size)):
                others = others.turned_back(quarters, size, size).moved(sides[i] / size, origins[i])
                passes[i].append(_match(candidates[i : i + 1], others))
    return Detections.cat([_mean(Detections.cat(own)) for own in passes])


def _surroundings(photo: Tensor, origin: list[float], side: float, size: int) -> Tensor:
    """The square of a photo from `origin`, black outside of it, as (size, size, 3)."""
    height, width = photo.shape[:2]
    x0, y0 = round(origin[0]), round(origin[1])
    x1, y1 = x0 + max(1, round(side)), y0 + max(1, round(side))
    part = photo[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
    outside = (0, 0, max(-x0, 0), max(x1 - width, 0), max(-y0, 0), max(y1 - height, 0))
    return resize(F.pad(part, outside), size, size)


def _match(candidate: Detections, others: Detections) -> Detections:
    """The best of a pass at the place of the one candidate, or the candidate with score 0."""
    shared = intersections(others.boxes, candidate.boxes[0])
    same = others[shared > _SAME * (candidate.areas + others.areas - shared)]
    return same[:1] if len(same) else Detections(candidate.boxes, candidate.scores * 0, candidate.landmarks)


def _mean(passes: Detections) -> Detections:
    """Mean of the passes as one, weighted by their scores; the score itself is their plain mean."""
    weight = (passes.scores + 1e-6) / (passes.scores + 1e-6).sum()
    boxes, landmarks = passes.boxes * weight[:, None], passes.landmarks * weight[:, None, None]
    return Detections(boxes.sum(0, keepdim=True), passes.scores.mean()[None], landmarks.sum(0, keepdim=True))
