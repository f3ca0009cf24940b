"""Denoising steps that hardly differ from the one before need not be computed in full.

The first block is always computed (first-block cache: ParaAttention, Cheng Zeyi; diffusers' `FirstBlockCache`). Where
what it adds has changed little since the last full step, what the blocks after it added then is continued along a
straight line from the full step before, as far as such a line held at the last full step: with DDIM it does, with a
scheduler that adds noise in every step it does not (docs/benchmarks.md).

diffusers' own does not fit: it hangs hooks into blocks, which clones of a model share, and would run the injections of
skipped blocks on top of what already holds them.
"""

import math
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..errors import SamplingError
from .compiling import uncompiled, uncompiled_itself

RunBlocks = Callable[[Tensor, Tensor, slice], tuple[Tensor, Tensor]]
Cached = Callable[[RunBlocks, Tensor, Tensor, Hashable, float], Tensor]  # a `StepCache`, as one GPU calls it

THRESHOLD, START = 0.15, 0.1
EVERY = 8  # tokens: how much a step has changed is read from every eighth
PATIENCE = 10.0  # seconds; a first GPU that fails, or whose step another cache skips, decides nothing


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
        tail_residual: (B, L, dim) what the blocks after it added.
        previous: the same of the full step before; None where there is none, or nobody needs it any more.
        slope: (B, L / EVERY, dim) how fast `tail_residual` changed between the two, per progress.
        extrapolation_weight: 0 … 1, how much of the predicted change came true at this step; a tensor on the device.
    """

    progress: float
    change: Tensor
    tail_residual: Tensor
    previous: Tensor | None = None
    previous_progress: float = 0.0
    slope: Tensor | None = None
    extrapolation_weight: Tensor | None = None

    def matches(self, first_block_output: Tensor) -> bool:
        """Whether it can stand in for a step of these tokens."""
        last = self.tail_residual
        return self.previous is not None and (last.shape, last.device) == (
            first_block_output.shape,
            first_block_output.device,
        )

    @uncompiled
    def extrapolate(self, progress: float) -> Tensor:
        """What the blocks after the first would add later in the run."""
        if self.extrapolation_weight is None or self.previous is None:
            return self.tail_residual
        ratio = (progress - self.progress) / (self.progress - self.previous_progress)
        weight = (1 + self.extrapolation_weight * ratio).to(self.tail_residual.dtype)
        return torch.lerp(self.previous, self.tail_residual, weight)

    def next_full_step(self, progress: float, change: Tensor, tail_residual: Tensor) -> "_Full":
        """The next full step, with what it tells of the line to this one."""
        elapsed = progress - self.progress
        if tail_residual.shape != self.tail_residual.shape or elapsed == 0:
            return _Full(progress, change, tail_residual)
        delta = (tail_residual[:, ::EVERY] - self.tail_residual[:, ::EVERY]).float()
        weight = None
        if self.slope is not None:
            predicted_delta = self.slope.float() * elapsed
            weight = ((delta * predicted_delta).sum() / predicted_delta.square().sum().clamp(min=1e-30)).clamp(0, 1)
        slope = (delta / elapsed).to(tail_residual.dtype)
        return _Full(progress, change, tail_residual, self.tail_residual, self.progress, slope, weight)


class StepCache:
    """What one sampling run keeps of its last full steps. Make a new one for every run.

    One decision holds for all guidance branches of a step: guidance multiplies the difference between them. Where they
    are computed at the same time, each GPU in a thread of its own, the first GPU decides and the others wait for it.

    Attributes:
        computed, skipped: steps so far.
    """

    def __init__(self, settings: CacheSettings):
        self.settings = settings
        self.computed, self.skipped = 0, 0
        self._full: dict[Hashable, _Full] = {}
        self._branches_done: set[Hashable] = set()
        self._progress: float | None = None
        self._skip, self._in_a_row = False, 0
        self._decided = threading.Condition()

    @uncompiled_itself
    def __call__(
        self,
        run_blocks: RunBlocks,
        block_input: Tensor,
        encoder_hidden_states: Tensor,
        branch: Hashable,
        progress: float,
        *,
        decides: bool = True,
    ) -> Tensor:
        """The video tokens after the last block, computed or extrapolated from the last full steps.

        Waits for the device once a step, where a decision is to be made.

        Args:
            run_blocks: (video tokens, text tokens, which blocks) → both after those blocks.
            block_input: (B, L, dim) video tokens before the first block.
            encoder_hidden_states: (B, N, dim) text tokens.
            branch: which guidance branches are in the batch; each keeps its own.
            progress: 0 first step … 1 last.
            decides: False on a further GPU.
        """
        first_block_output, encoder_hidden_states = run_blocks(block_input, encoder_hidden_states, slice(1))
        change = first_block_output[:, ::EVERY] - block_input[:, ::EVERY]
        if self._skips(branch, progress, change, first_block_output, decides):
            return first_block_output + self._full[branch].extrapolate(progress)
        hidden_states, _ = run_blocks(first_block_output, encoder_hidden_states, slice(1, None))
        self._keep(branch, progress, change, hidden_states - first_block_output)
        return hidden_states

    @uncompiled
    def _skips(
        self, branch: Hashable, progress: float, change: Tensor, first_block_output: Tensor, decides: bool
    ) -> bool:
        full = self._full.get(branch)
        matching = full if full is not None and full.matches(first_block_output) else None
        with self._decided:
            if decides and not self._is_decided(branch, progress):
                self._decide(progress, matching is not None and self._may_skip(progress, change, matching.change))
            decided = self._decided.wait_for(lambda: self._is_decided(branch, progress), PATIENCE)
            skip = decided and self._skip and matching is not None
            self._branches_done.add(branch)
        if not skip and full is not None:  # it would only take memory while the step is computed
            self._full[branch] = replace(full, previous=None)
        return skip

    def _is_decided(self, branch: Hashable, progress: float) -> bool:
        """Whether the last decision is that of this step: a branch that asks again has come to the next."""
        return progress == self._progress and branch not in self._branches_done

    def _decide(self, progress: float, skip: bool) -> None:
        self._progress, self._branches_done, self._skip = progress, set(), skip
        self._in_a_row = self._in_a_row + 1 if skip else 0
        self.skipped += skip
        self.computed += not skip
        self._decided.notify_all()

    @uncompiled
    def _keep(self, branch: Hashable, progress: float, change: Tensor, tail_residual: Tensor) -> None:
        last = self._full.get(branch)
        new = _Full(progress, change, tail_residual)
        self._full[branch] = last.next_full_step(progress, change, tail_residual) if last else new

    def _may_skip(self, progress: float, change: Tensor, previous: Tensor) -> bool:
        s = self.settings
        if not s.start <= progress <= s.end or self._in_a_row >= s.most:
            return False
        difference = (change - previous).abs().mean(dtype=torch.float32)
        return bool(difference < s.threshold * previous.abs().mean(dtype=torch.float32))


class StepCaches:
    """One `StepCache` for each context window of a sampling run."""

    def __init__(self, settings: CacheSettings):
        self._new = partial(StepCache, settings)
        self._caches: dict[Hashable, StepCache] = {}

    def of(self, window: Hashable, decides: bool = True) -> Cached:
        """The window's own, made at first use. decides: False on a further GPU."""
        cache = self._caches.setdefault(window, self._new())  # one call: GPUs may ask in the same moment
        return cache if decides else partial(cache, decides=False)

    def report(self) -> str:
        """How much was skipped, for the log."""
        computed, skipped = (sum(getattr(c, what) for c in self._caches.values()) for what in ("computed", "skipped"))
        return f"the step cache skipped {skipped} of {computed + skipped} steps"
