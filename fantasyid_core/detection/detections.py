"""What a detector returns, and its geometry: suppression, mirrored and turned pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_IN_A_MIRROR = [1, 0, 2, 4, 3]  # the landmark that each becomes


@dataclass(frozen=True, eq=False)
class Detections:
    """N candidates or faces of one picture, in px of it.

    Attributes:
        boxes: (N, 4) x0 y0 x1 y1.
        scores: (N,) 0…1, the detector's certainty.
        landmarks: (N, 5, 2) x y: the person's right eye, left eye, nose, right and left mouth corner.
    """

    boxes: Tensor
    scores: Tensor
    landmarks: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Any) -> "Detections":
        """Some of them: by a slice, a mask (N,) or indices."""
        return Detections(self.boxes[index], self.scores[index], self.landmarks[index])

    @classmethod
    def cat(cls, several: Sequence["Detections"]) -> "Detections":
        """All of several, of which there is at least one."""
        return cls(*(torch.cat([getattr(one, name) for one in several]) for name in ("boxes", "scores", "landmarks")))

    def to(self, device: torch.device) -> "Detections":
        """The same on a device."""
        return Detections(self.boxes.to(device), self.scores.to(device), self.landmarks.to(device))

    @property
    def sizes(self) -> Tensor:
        """(N, 2) widths and heights."""
        return self.boxes[:, 2:] - self.boxes[:, :2]

    @property
    def areas(self) -> Tensor:
        """(N,) px²."""
        return self.sizes.prod(-1)

    @property
    def best_score(self) -> float:
        """The most certain one's; 0 where there is none."""
        return float(self.scores.max()) if len(self) else 0.0

    def moved(self, scale: Tensor | float, shift: Tensor | float = 0.0) -> "Detections":
        """Every point times `scale`, plus `shift`; each a number or (2,) for x and y."""
        boxes = (self.boxes.unflatten(1, (2, 2)) * scale + shift).flatten(1)
        return Detections(boxes, self.scores, self.landmarks * scale + shift)

    def mirrored(self, width: int) -> "Detections":
        """Those of a mirrored picture of that width, in px of the picture itself."""
        x0, y0, x1, y1 = self.boxes.unbind(1)
        boxes = torch.stack([width - x1, y0, width - x0, y1], 1)
        x, y = self.landmarks.unbind(-1)
        return Detections(boxes, self.scores, torch.stack([width - x, y], -1)[:, _IN_A_MIRROR])

    def turned_back(self, quarters: int, height: int, width: int) -> "Detections":
        """Those of `torch.rot90(picture, quarters)`, in px of the picture, which has that height and width."""
        if not quarters:
            return self

        def turn(points: Tensor) -> Tensor:
            x, y = points.unbind(-1)
            return torch.stack({1: (width - y, x), 2: (width - x, height - y), 3: (y, height - x)}[quarters], -1)

        corners = turn(self.boxes.unflatten(1, (2, 2)))
        return Detections(torch.cat([corners.amin(1), corners.amax(1)], 1), self.scores, turn(self.landmarks))


Detector = Callable[[Tensor, float], list[Detections]]
"""(B, H, W, 3) float RGB 0…1 and the least score → one `Detections` a picture, on the CPU, best score first."""


def intersections(boxes: Tensor, box: Tensor) -> Tensor:
    """(N,) px² that each of the boxes (N, 4) shares with a box (4,)."""
    corner, opposite = torch.maximum(box[:2], boxes[:, :2]), torch.minimum(box[2:], boxes[:, 2:])
    return (opposite - corner).clamp(min=0).prod(-1)


def nms(candidates: Detections, overlap: float, of_smaller: bool = False) -> Detections:
    """Greedy non-maximum suppression; best score first.

    Args:
        overlap: of two boxes that share more, the one with the lower score is dropped: as intersection over union.
        of_smaller: as intersection over the smaller of the two boxes.
    """
    candidates = candidates[candidates.scores.argsort(descending=True, stable=True)]
    boxes, areas, remaining, chosen = candidates.boxes, candidates.areas, torch.arange(len(candidates)), []
    while len(remaining):
        best, remaining = remaining[0], remaining[1:]
        chosen.append(best)
        shared = intersections(boxes[remaining], boxes[best])
        area, others = areas[best], areas[remaining]
        whole = torch.minimum(area, others) if of_smaller else area + others - shared
        remaining = remaining[shared <= overlap * whole]
    return candidates[torch.stack(chosen)] if chosen else candidates
