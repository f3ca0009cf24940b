"""Which steps are skipped, and what stands in for them."""

import math
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fantasyid_core.dit import step_cache
from fantasyid_core.dit.step_cache import Cached, CacheSettings, StepCache, StepCaches
from fantasyid_core.errors import SamplingError

ALWAYS = CacheSettings(1e9, start=0.0, most=1000)


class Blocks:
    """Stands for a model of five blocks: the first adds `change`, the other four one `tail_residual` each."""

    def __init__(self, change: float = 1.0, tail_residual: float = 10.0):
        self.change, self.tail_residual, self.ran = change, tail_residual, 0

    def __call__(self, hidden_states: Tensor, encoder_hidden_states: Tensor, blocks: slice) -> tuple[Tensor, Tensor]:
        for i in range(*blocks.indices(5)):
            hidden_states, self.ran = hidden_states + (self.tail_residual if i else self.change), self.ran + 1
        return hidden_states, encoder_hidden_states


def step(cache: Cached, blocks: Blocks, progress: float, branch: object = (), tokens: int = 16) -> float:
    """What the model adds to tokens of zeros."""
    out = cache(blocks, torch.zeros(1, tokens, 4), torch.zeros(1, 3, 4), branch, progress)
    assert out.shape == (1, tokens, 4)
    return float(out.mean())


def run(settings: CacheSettings, changes: list[float]) -> list[int]:
    """Steps that were computed in full, where the first block adds `changes`."""
    cache, computed = StepCache(settings), []
    for i, change in enumerate(changes):
        blocks = Blocks(change)
        step(cache, blocks, i / (len(changes) - 1))
        computed += [i] * (blocks.ran == 5)
    assert (cache.computed, cache.skipped) == (len(computed), len(changes) - len(computed))
    return computed


def started(settings: CacheSettings, *branches: str, tail_residuals: tuple[float, ...] = (10.0, 10.0)) -> StepCache:
    """A cache after full steps at 0, 0.1 …"""
    cache = StepCache(replace(settings, start=0.1 * len(tail_residuals) - 0.05))
    for i, tail_residual in enumerate(tail_residuals):
        for branch in branches or ((),):
            step(cache, Blocks(tail_residual=tail_residual), 0.1 * i, branch)
    assert cache.skipped == 0
    return cache


def test_a_skipped_step_is_the_first_block_anew_and_the_rest_of_the_last_full_step():
    cache = started(ALWAYS, tail_residuals=(10.0, 11.0))
    later = Blocks(2.0, tail_residual=999.0)
    assert step(cache, later, 0.2) == 2 + 4 * 11
    assert later.ran == 1


@pytest.mark.parametrize(
    ("tail_residuals", "skipped"),
    [((10.0, 11.0, 12.0), (13, 14)), ((10.0, 12.0, 13.0), (13.5, 14)), ((10.0, 12.0, 11.0), (11, 11))],
    ids=["a line", "half of what the line foretold", "back again"],
)
def test_the_rest_goes_on_along_a_line_as_far_as_one_held_before(tail_residuals, skipped):
    cache = started(ALWAYS, tail_residuals=tail_residuals)
    for progress, tail_residual in zip((0.3, 0.4), skipped, strict=True):
        assert step(cache, Blocks(1.0), progress) == pytest.approx(1 + 4 * tail_residual)


def test_two_full_steps_come_first():
    assert run(ALWAYS, [1.0] * 6) == [0, 1]


def test_threshold_zero_computes_every_step():
    assert run(CacheSettings(0.0, start=0.0), [1.0] * 6) == [0, 1, 2, 3, 4, 5]


def test_change_is_measured_from_the_last_full_step_so_that_small_ones_add_up():
    assert run(CacheSettings(0.25, start=0.0, most=99), [1.0, 1.0, 1.1, 1.2, 1.3, 1.4]) == [0, 1, 4]


def test_at_most_so_many_steps_in_a_row_are_skipped():
    assert run(CacheSettings(1e9, start=0.0, most=2), [1.0] * 9) == [0, 1, 4, 7]


def test_only_a_part_of_the_run_is_skipped():
    assert run(CacheSettings(1e9, start=0.3, end=0.6, most=99), [1.0] * 11) == [0, 1, 2, 7, 8, 9, 10]


def test_the_first_branch_of_a_step_decides_for_all():
    cache = started(CacheSettings(0.5), "with the prompt", "without")
    assert step(cache, Blocks(1.1), 0.2, "with the prompt") == pytest.approx(41.1)
    other = Blocks(9.0)
    assert step(cache, other, 0.2, "without") == pytest.approx(49)
    assert other.ran == 1
    assert (cache.computed, cache.skipped) == (2, 1)


def test_branches_keep_their_own():
    cache = StepCache(ALWAYS)
    for progress in (0.0, 0.1):
        step(cache, Blocks(tail_residual=1.0), progress, "with the prompt")
        step(cache, Blocks(tail_residual=2.0), progress, "without")
    assert step(cache, Blocks(), 0.2, "with the prompt") == 5
    assert step(cache, Blocks(), 0.2, "without") == 9
    assert step(cache, new := Blocks(), 0.3, "a batch of both") == 41
    assert new.ran == 5


def test_two_evaluations_at_one_timestep_are_two_steps():
    """Samplers of second order ask the model twice at a time, with other latents."""
    cache = started(CacheSettings(0.1))
    assert step(cache, Blocks(3.0), 0.1) == 43
    assert step(cache, Blocks(3.0, tail_residual=20.0), 0.1) == 83
    assert math.isfinite(step(cache, Blocks(3.0), 0.2))


def test_other_sizes_are_computed():
    cache = started(ALWAYS)
    assert step(cache, other := Blocks(), 0.2, tokens=24) == 41
    assert other.ran == 5
    assert step(cache, Blocks(), 0.3, tokens=24) == 41


def test_context_windows_keep_their_own():
    caches = StepCaches(ALWAYS)
    for progress in (0.0, 0.1):
        step(caches.of((0, 1)), Blocks(tail_residual=1.0), progress)
        step(caches.of((1, 2)), Blocks(tail_residual=2.0), progress)
    assert step(caches.of((0, 1)), Blocks(), 0.2) == 5
    assert caches.report() == "the step cache skipped 1 of 5 steps"


def test_a_further_gpu_waits_for_what_the_first_decides():
    caches = StepCaches(CacheSettings(0.15, start=0.0))
    first, further = caches.of(()), caches.of((), decides=False)
    changes = [1.0, 1.0, 1.3, 1.3]  # of the first GPU; those of the other never change
    with ThreadPoolExecutor(1) as other:
        for i, change in enumerate(changes):
            blocks = Blocks()
            waiting = other.submit(step, further, blocks, 0.1 * i, "negative")
            if i == 2:
                assert not wait([waiting], 0.05).done
            step(first, mine := Blocks(change), 0.1 * i, "positive")
            waiting.result(5)
            assert blocks.ran == mine.ran == (1 if i == 3 else 5), i


def test_a_further_gpu_computes_where_the_first_decides_nothing(monkeypatch):
    monkeypatch.setattr(step_cache, "PATIENCE", 0.01)
    further = StepCaches(ALWAYS).of((), decides=False)
    for i in range(3):
        step(further, blocks := Blocks(), 0.1 * i)
        assert blocks.ran == 5


@pytest.mark.parametrize(
    "values",
    [
        {"threshold": -0.1},
        {"threshold": math.nan},
        {"threshold": 0.1, "start": 1.5},
        {"start": 0.7, "end": 0.3},
        {"threshold": 0.1, "most": 0},
    ],
)
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(SamplingError, match="The step cache"):
        CacheSettings(**values)
