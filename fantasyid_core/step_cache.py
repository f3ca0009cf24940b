"""Denoising steps that hardly differ from the one before need not be computed in full.

The first block is always computed (first-block cache: ParaAttention, Cheng Zeyi; diffusers' `FirstBlockCache`). Where
what it adds has changed little since the last full step, what the blocks after it add is continued along a straight
line from the last two full steps, which errs less than taking the last one again (docs/benchmarks.md).

diffusers' own does not fit: it hangs hooks into blocks, which models share in the host, and would run the injections of
skipped blocks on top of what already holds them.
"""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from .errors import SamplingError

Through = Callable[[Tensor, Tensor, slice], tuple[Tensor, Tensor]]

THRESHOLD, START = 0.1, 0.1
EVERY = 8  # tokens: how much a step has changed is read from every eighth


@dataclass(frozen=True)
class CacheSettings:
    """When a step may be skipped.

    Attributes:
        threshold: relative change of what the first block adds, mean over tokens, below which a step is skipped; ≥ 0,
            and 0 skips none.
        start, end: part of the sampling run in which steps are skipped, 0 first step … 1 last.
        most: at most so many skipped steps in a row.

    Raises:
        SamplingError: one of them is out of range.
    """

    threshold: float = THRESHOLD
    start: float = START
    end: float = 1.0
    most: int = 3

    def __post_init__(self):
        if not math.isfinite(self.threshold) or self.threshold < 0:
            raise SamplingError(f"The step cache's threshold must be a number from 0; got {self.threshold}.")
        if not (0 <= self.start <= 1 and 0 <= self.end <= 1):
            raise SamplingError(f"The step cache's start and end must lie in 0 … 1; got {self.start} and {self.end}.")
        if self.most < 1:
            raise SamplingError(f"The step cache must be allowed at least one skipped step; got {self.most}.")


@dataclass(frozen=True, eq=False)
class _Full:
    """A step that was computed in full.

    Attributes:
        progress: where in the run.
        change: (B, L / EVERY, dim) what the first block added.
        rest: (B, L, dim) what the blocks after it added.
        earlier: `progress` and `rest` of the full step before.
    """

    progress: float
    change: Tensor
    rest: Tensor
    earlier: tuple[float, Tensor] | None = None

    def fits(self, first: Tensor) -> bool:
        """Whether it can stand in for a step of these tokens."""
        return self.earlier is not None and self.rest.shape == first.shape and self.rest.device == first.device

    @torch.compiler.disable
    def continued(self, progress: float) -> Tensor:
        """What the blocks after the first would add later in the run."""
        before, rest = self.earlier
        return torch.lerp(rest, self.rest, (progress - before) / (self.progress - before))


class StepCache:
    """What one sampling run keeps of its last full steps. Make a new one for every run.

    One decision holds for all guidance branches of a step: guidance multiplies the difference between them.

    Attributes:
        computed, skipped: steps so far.
    """

    def __init__(self, settings: CacheSettings):
        self.settings = settings
        self.computed, self.skipped = 0, 0
        self._full: dict[Hashable, _Full] = {}
        self._asked: set[Hashable] = set()
        self._progress: float | None = None
        self._skip, self._in_a_row = False, 0

    @torch.compiler.disable(recursive=False)
    def apply(self, through: Through, start: Tensor, words: Tensor, branch: Hashable, progress: float) -> Tensor:
        """The visual tokens after the last block, computed or put together from what was kept.

        Waits for the device once a step, where a decision is to be made.

        Args:
            through: (visual tokens, text tokens, which blocks) → both after those blocks.
            start: (B, L, dim) visual tokens before the first block.
            words: (B, N, dim) text tokens.
            branch: which guidance branches are in the batch; each keeps its own.
            progress: 0 first step … 1 last.
        """
        first, words = through(start, words, slice(1))
        change = first[:, ::EVERY] - start[:, ::EVERY]
        if self._skips(branch, progress, change, first):
            return first + self._full[branch].continued(progress)
        visual, _ = through(first, words, slice(1, None))
        self._keep(branch, progress, change, visual - first)
        return visual

    @torch.compiler.disable
    def _skips(self, branch: Hashable, progress: float, change: Tensor, first: Tensor) -> bool:
        full = self._full.get(branch)
        fits = full is not None and full.fits(first)
        if progress != self._progress or branch in self._asked:  # a new step: its first branch decides for all
            self._progress, self._asked = progress, set()
            self._skip = fits and self._may_skip(progress, change, full.change)
            self._in_a_row = self._in_a_row + 1 if self._skip else 0
            self.skipped += self._skip
            self.computed += not self._skip
        self._asked.add(branch)
        if self._skip and fits:
            return True
        if full is not None:  # nobody needs it while the step is computed
            self._full[branch] = replace(full, earlier=None)
        return False

    @torch.compiler.disable
    def _keep(self, branch: Hashable, progress: float, change: Tensor, rest: Tensor) -> None:
        last = self._full.get(branch)
        usable = last is not None and last.rest.shape == rest.shape and last.progress != progress
        self._full[branch] = _Full(progress, change, rest, (last.progress, last.rest) if usable else None)

    def _may_skip(self, progress: float, change: Tensor, before: Tensor) -> bool:
        s = self.settings
        if not s.start <= progress <= s.end or self._in_a_row >= s.most:
            return False
        difference = (change - before).abs().mean(dtype=torch.float32)
        return bool(difference < s.threshold * before.abs().mean(dtype=torch.float32))


class StepCaches:
    """One `StepCache` for each context window of a sampling run."""

    def __init__(self, settings: CacheSettings):
        self._new = partial(StepCache, settings)
        self._caches: dict[Hashable, StepCache] = {}

    def of(self, window: Hashable) -> StepCache:
        """The window's own, made at first use."""
        if window not in self._caches:
            self._caches[window] = self._new()
        return self._caches[window]

    def report(self) -> str:
        """How much was skipped, for the log."""
        computed, skipped = (sum(getattr(c, what) for c in self._caches.values()) for what in ("computed", "skipped"))
        return f"the step cache skipped {skipped} of {computed + skipped} steps"
