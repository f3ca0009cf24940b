"""Where in the picture and when in the video an identity acts: one weight per visual token."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import IdentityError, SamplingError
from .acting import per_latent
from .config import FPS, TIME_SCALE

ADD, SHARE, LAST_WINS = OVERLAPS = ("add", "share", "last wins")
Box = tuple[float, float, float, float]
"""Left, top, width and height in shares of the picture."""
_ROUNDING = 1e-3  # by which a box may leave the picture: widgets show hundredths


@dataclass(frozen=True, eq=False)
class Region:
    """Where and when one identity acts; everywhere and always by default.

    Attributes:
        mask: (1 or F, H, W) 0…1, one picture or one per frame of the video, soft edges as they are; stretched to the
            video's size. None: the whole picture.
        from_second, to_second: part of the video, at `fps`; `to_second` infinite for the rest of it.
        fade: seconds over which it sets in and ends, half of them before and half after.
        overlap: how it goes with the identities before it where both act. ADD: both in full; SHARE: weights of all that
            share are divided by their sum where that is above 1; LAST_WINS: it displaces them.
        fps: frames per second of the video.
        box: inside of the picture; with a mask, both limit it. None: the whole picture.

    Raises:
        IdentityError: the mask, the box or the times are none.
    """

    mask: Tensor | None = None
    from_second: float = 0.0
    to_second: float = math.inf
    fade: float = 0.0
    overlap: str = ADD
    fps: float = FPS
    box: Box | None = None

    def __post_init__(self):
        if self.overlap not in OVERLAPS:
            raise IdentityError(f"There is no overlap '{self.overlap}'; choose one of: {', '.join(OVERLAPS)}.")
        if not (0 <= self.from_second < self.to_second and 0 <= self.fade < math.inf):
            raise IdentityError(
                f"The identity would act from second {self.from_second:g} to second {self.to_second:g} of the video, "
                f"with a fade of {self.fade:g} s. Set from_second before to_second, neither below 0; to_second 0 "
                "means to the end."
            )
        if self.mask is not None:
            _check_mask(self.mask)
        if self.box is not None:
            _check_box(self.box)

    @property
    def is_everywhere(self) -> bool:
        """Whether neither mask nor box nor times limit it."""
        return self.mask is None and self.box is None and self.from_second == 0 and self.to_second == math.inf

    def weights(self, frames: int, rows: int, columns: int) -> Tensor:
        """Weights of the visual tokens (T, rows, columns) of a video of T = `frames` latent frames, float32 0…1.

        A latent frame has the mean of the frames that the VAE makes it of: the first of one, each later one of four. A
        token has the mean of the area that it covers.

        Raises:
            SamplingError: the mask has another number of frames than the video.
        """
        count = (frames - 1) * TIME_SCALE + 1
        times = per_latent(self._at(torch.arange(count) / self.fps))[:, None, None]
        if self.box is not None:
            times = times * _coverage(self.box, rows, columns)
        if self.mask is None:
            return times.expand(-1, rows, columns)
        if len(self.mask) not in (1, count):
            raise SamplingError(
                f"The identity's mask has {len(self.mask)} frames, but the video has {count}. Connect one mask for "
                f"the whole video, or one for each of its {count} frames."
            )
        mask = F.adaptive_avg_pool2d(self.mask.detach().float().cpu().clamp(0, 1)[:, None], (rows, columns))[:, 0]
        if len(mask) == 1:
            return times * mask
        masked = per_latent(self._at(torch.arange(count) / self.fps)[:, None, None] * mask)
        return masked if self.box is None else masked * _coverage(self.box, rows, columns)

    def _at(self, seconds: Tensor) -> Tensor:
        """Weights at these times."""
        if self.fade == 0:
            return ((seconds >= self.from_second) & (seconds < self.to_second)).float()
        begun = 1.0 if self.from_second == 0 else 0.5 + (seconds - self.from_second) / self.fade
        ended = 0.0 if self.to_second == math.inf else 0.5 + (seconds - self.to_second) / self.fade
        begun, ended = (torch.as_tensor(x).clamp(0, 1).expand_as(seconds) for x in (begun, ended))
        return begun * (1 - ended)


EVERYWHERE = Region()


@dataclass(frozen=True)
class TokenGrid:
    """The visual tokens of one prediction.

    Attributes:
        frames: latent frames of the whole video.
        rows, columns: tokens of a latent frame.
        window: the latent frames that are predicted; empty: all.
    """

    frames: int
    rows: int
    columns: int
    window: tuple[int, ...] = ()


def token_weights(regions: Sequence[Region], grid: TokenGrid) -> list[Tensor | None]:
    """What each identity counts at each visual token of a prediction.

    Returns:
        For each region (L, 1) float32 0…1, L tokens in the DiT's order; None where it counts in full everywhere.

    Raises:
        SamplingError: a mask does not fit the video.
    """
    if all(region.is_everywhere and region.overlap == ADD for region in regions):
        return [None] * len(regions)
    drawn = torch.stack([region.weights(grid.frames, grid.rows, grid.columns) for region in regions])
    combined = _combine(drawn, [region.overlap for region in regions])
    if grid.window:
        combined = combined[:, list(grid.window)]
    return [None if bool((own == 1).all()) else own.reshape(-1, 1) for own in combined]


def _combine(drawn: Tensor, overlaps: Sequence[str]) -> Tensor:
    """Weights (N, …) as each region has them alone → as they act together."""
    combined = drawn.clone()
    sharing: list[list[int]] = []
    for i, overlap in enumerate(overlaps):
        if overlap == SHARE and sharing:
            sharing[-1].append(i)
        else:
            sharing.append([i])
        if overlap == LAST_WINS:
            combined[:i] *= 1 - drawn[i]
    for group in sharing:
        combined[group] /= combined[group].sum(0).clamp(min=1)
    return combined


def _coverage(box: Box, rows: int, columns: int) -> Tensor:
    """(rows, columns) 0…1, how much of each cell of the picture a box covers."""
    left, top, width, height = box

    def along(count: int, begin: float, length: float) -> Tensor:
        edges = torch.arange(count + 1, dtype=torch.float32)
        return (edges[1:].clamp(max=(begin + length) * count) - edges[:-1].clamp(min=begin * count)).clamp(0, 1)

    return along(rows, top, height)[:, None] * along(columns, left, width)


def _check_box(box: Box) -> None:
    left, top, width, height = box
    if not (width > 0 and height > 0):
        raise IdentityError(
            f"The person's box is empty: width {width:g}, height {height:g}. Set both above 0; 1 is the whole picture."
        )
    if not (left >= 0 and top >= 0 and left + width <= 1 + _ROUNDING and top + height <= 1 + _ROUNDING):
        raise IdentityError(
            f"The person's box leaves the picture: from {left:g} to {left + width:g} across and from {top:g} to "
            f"{top + height:g} down, of 0 to 1. Move it, or make it smaller."
        )


def _check_mask(mask: Tensor) -> None:
    if mask.ndim != 3 or 0 in mask.shape:
        raise IdentityError(
            f"The identity's mask has shape {tuple(mask.shape)}; expected (frames, height, width), none of them 0. "
            "Connect a MASK, such as from Load Image or a mask editor."
        )
    low, high = (float(x) for x in mask.detach().float().aminmax())
    if not -1e-3 <= low <= high <= 1 + 1e-3:  # also where they are no numbers
        raise IdentityError(
            f"The identity's mask has values from {low:g} to {high:g}; expected 0 (not here) to 1 (in full). Divide it "
            "by its largest value, or connect another."
        )
