"""Denoising steps that hardly differ from the one before need not be computed in full.

The first block is always computed (first-block cache: ParaAttention, Cheng Zeyi; diffusers' `FirstBlockCache`). Where
what it adds has changed little since the last full step, what the blocks after it added then is continued along a
straight line from the full step before, as far as such a line held at the last full step: with DDIM it does, with a
scheduler that adds noise in every step it does not (docs/benchmarks.md).

diffusers' own does not fit: it hangs hooks into blocks, which models share in the host, and would run the injections of
skipped blocks on top of what already holds them.
"""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..errors import SamplingError

Through = Callable[[Tensor, Tensor, slice], tuple[Tensor, Tensor]]

THRESHOLD, START = 0.15, 0.1
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
            raise SamplingError(
                f"The step cache's threshold must be a number from 0; got {self.threshold}. "
                "Set it to the node's default."
            )
        if not 0 <= self.start <= self.end <= 1:
            raise SamplingError(
                f"The step cache's start and end must lie in 0 … 1, start not after end; got {self.start} and "
                f"{self.end}. To compute all steps, switch step_cache off."
            )
        if self.most < 1:
            raise SamplingError(
                f"The step cache must be allowed at least one skipped step; got {self.most}. "
                "Set it to the default, or switch the cache off."
            )


@dataclass(frozen=True, eq=False)
class _Full:
    """A step that was computed in full.

    Attributes:
        progress: where in the run.
        change: (B, L / EVERY, dim) what the first block added.
        rest: (B, L, dim) what the blocks after it added.
        before: the same of the full step before; None where there is none, or nobody needs it any more.
        slope: (B, L / EVERY, dim) how fast `rest` changed between the two, per progress.
        trust: 0 … 1, how much of the change that the slope foretold came true at this step; a tensor on the device.
    """

    progress: float
    change: Tensor
    rest: Tensor
    before: Tensor | None = None
    before_progress: float = 0.0
    slope: Tensor | None = None
    trust: Tensor | None = None

    def fits(self, first: Tensor) -> bool:
        """Whether it can stand in for a step of these tokens."""
        return self.before is not None and self.rest.shape == first.shape and self.rest.device == first.device

    @torch.compiler.disable
    def continued(self, progress: float) -> Tensor:
        """What the blocks after the first would add later in the run."""
        if self.trust is None:
            return self.rest
        further = (progress - self.progress) / (self.progress - self.before_progress)
        return torch.lerp(self.before, self.rest, (1 + self.trust * further).to(self.rest.dtype))

    def followed(self, progress: float, change: Tensor, rest: Tensor) -> "_Full":
        """The next full step, compared with this one."""
        passed = progress - self.progress
        if rest.shape != self.rest.shape or passed == 0:
            return _Full(progress, change, rest)
        came = (rest[:, ::EVERY] - self.rest[:, ::EVERY]).float()
        trust = None
        if self.slope is not None:
            foretold = self.slope.float() * passed
            trust = ((came * foretold).sum() / foretold.square().sum().clamp(min=1e-30)).clamp(0, 1)
        slope = (came / passed).to(rest.dtype)
        return _Full(progress, change, rest, self.rest, self.progress, slope, trust)


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
        if full is not None:  # it would only take memory while the step is computed
            self._full[branch] = replace(full, before=None)
        return False

    @torch.compiler.disable
    def _keep(self, branch: Hashable, progress: float, change: Tensor, rest: Tensor) -> None:
        last = self._full.get(branch)
        self._full[branch] = last.followed(progress, change, rest) if last else _Full(progress, change, rest)

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
