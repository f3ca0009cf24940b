"""Steps that are skipped inside ComfyUI: by our cache, by its EasyCache and LazyCache, of eight steps."""

from collections.abc import Callable

import comfy.model_base
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from pack.fantasyid_core.dit.injection import Injection
from pack.nodes.acceleration import FantasyIDFaster
from pack.nodes.host.options import add_injection, transformer_of
from pack.nodes.host.sampler import ReleaseSampler
from pack.tests.support import in_comfyui
from pack.tests.support.in_comfyui import difference, guider, load
from torch import Tensor

SEED = torch.Generator().manual_seed(0)
NOISE, OTHER_NOISE = torch.randn(2, 1, 16, 2, 20, 20, generator=SEED)
TEXT, NEGATIVE, OTHER_TEXT = torch.randn(3, 1, 226, 32, generator=SEED)
TOKENS, OTHER_TOKENS = torch.randn(2, 20, 64, generator=SEED)
STEPS = 8
ALWAYS = {"cache_threshold": 1e9, "cache_start": 0.0, "cache_end": 1.0}


def sample(model, noise: Tensor = NOISE, text: Tensor = TEXT, sampler="ddim") -> Tensor:
    return in_comfyui.sample(guider(model, [[text, {}]], [[NEGATIVE, {}]]), noise, STEPS, sampler)


def faster(model, **settings):
    return FantasyIDFaster.run(model, False, step_cache="first block", **ALWAYS | settings).args[0]


def counted(model, run: Callable[[], Tensor]) -> tuple[Tensor, list[int]]:
    """The latents, and how often the first and the last block ran."""
    counts, blocks = [0, 0], transformer_of(model).transformer_blocks

    def count(which: int) -> Callable:
        def hook(*_) -> None:
            counts[which] += 1

        return hook

    hooks = [block.register_forward_hook(count(i)) for i, block in enumerate((blocks[0], blocks[-1]))]
    latents = run()
    for hook in hooks:
        hook.remove()
    return latents, counts


@pytest.fixture(scope="module")
def model(plain):
    return add_injection(plain, Injection(TOKENS))


@pytest.fixture(scope="module")
def exact(model) -> Tensor:
    return sample(model)


@pytest.fixture(scope="module")
def cached(model):
    """A MODEL that skips every step it may."""
    return faster(model)


@pytest.fixture(scope="module")
def skipping(cached) -> Tensor:
    return sample(cached)


def test_skipped_steps_run_the_first_block_only(model, cached, exact):
    latents, counts = counted(model, lambda: sample(cached))
    assert counts == [8, 3]
    assert 0 < difference(latents, exact) < 1


def test_a_run_that_stopped_goes_on_with_its_step_cache(cached):
    for scheduler in ("ddim", "dpm"):
        whole, parts = (ReleaseSampler(scheduler, STEPS, torch.Generator().manual_seed(5)) for _ in range(2))
        expected = sample(cached, sampler=whole)
        parts.until = 5
        made = guider(cached, [[TEXT, {}]], [[NEGATIVE, {}]])
        foreseen = in_comfyui.sample(made, NOISE, STEPS, parts)
        assert difference(foreseen, expected) > 0.01
        parts.until = None
        latents, counts = counted(cached, lambda made=made, parts=parts: in_comfyui.sample(made, NOISE, STEPS, parts))
        assert torch.equal(latents, expected)
        assert counts[0] == 3, "steps of the second part"
        assert counts[1] < 3, "of which the cache, filled in the first part, skips some"


def test_off_and_threshold_zero_are_bit_equal_to_exact(model, cached, exact):
    assert torch.equal(sample(FantasyIDFaster.run(cached, False, step_cache="off").args[0]), exact)
    assert torch.equal(sample(faster(model, cache_threshold=0.0)), exact)
    assert torch.equal(sample(model), exact), "the plain model is untouched"


def test_start_bounds_the_part_that_is_skipped(model):
    _, (first, last) = counted(model, lambda: sample(faster(model, cache_start=0.5)))
    assert first == 8
    assert 4 < last < 8


def test_the_step_where_an_identity_sets_in_is_computed(plain, model):
    late = faster(add_injection(plain, Injection(TOKENS, start=0.2)))
    _, counts = counted(model, lambda: sample(late))
    assert counts == [8, 5], "two full steps before it and two after"


def test_nothing_is_left_for_the_next_run(plain, cached, skipping, standin_nano):
    """Other noise, prompt or identity equals a model that never ran."""
    assert torch.equal(sample(cached), skipping)
    never_ran = faster(add_injection(load(standin_nano), Injection(TOKENS)))
    assert torch.equal(sample(cached, OTHER_NOISE), sample(never_ran, OTHER_NOISE))
    assert torch.equal(sample(cached, text=OTHER_TEXT), sample(never_ran, text=OTHER_TEXT))
    other, never_ran = (faster(add_injection(x, Injection(OTHER_TOKENS))) for x in (plain, load(standin_nano)))
    assert torch.equal(sample(other), sample(never_ran))


def test_apply_fantasyid_may_come_before_or_after(plain, skipping):
    assert torch.equal(sample(add_injection(faster(plain), Injection(TOKENS))), skipping)


def test_every_sampler_skips(model, cached):
    for sampler in (ReleaseSampler("dpm", STEPS, torch.Generator()), "dpm_2", "heun"):
        _, (first, last) = counted(model, lambda sampler=sampler: sample(cached, sampler=sampler))
        assert last < first, sampler


def test_branches_one_after_the_other_are_skipped_together(model, cached, skipping, monkeypatch):
    """As ComfyUI predicts them where memory is short."""
    monkeypatch.setattr(comfy.model_base.BaseModel, "memory_required", lambda *_, **__: 1e15)
    latents, counts = counted(model, lambda: sample(cached))
    assert counts == [16, 6]
    assert difference(latents, skipping) < 1e-5


def test_compiled_blocks_are_skipped_as_well(cached, skipping):
    compiled = cached.clone()
    set_torch_compile_wrapper(compiled, backend="eager", keys=["diffusion_model.transformer_blocks.1"])
    assert difference(sample(compiled), skipping) < 1e-5


def test_comfyui_s_easycache_works_on_our_model_and_skips_whole_steps_more_with_ours(model, exact):
    easy = EasyCacheNode.execute(model, 3.0, 0.0, 1.0, False).args[0]
    latents, (first, last) = counted(model, lambda: sample(easy))
    assert first == last < 8
    assert 0 < difference(latents, exact) < 1
    latents, (first_of_both, last_of_both) = counted(model, lambda: sample(faster(easy)))
    assert latents.isfinite().all()
    assert last_of_both <= first_of_both <= first
    assert torch.equal(sample(model), exact)


def test_comfyui_s_lazycache_does_not_suit_our_schedule(model, exact):
    """It adds the last step's noise, which in ComfyUI's scale is many times this step's: use EasyCache, or ours."""
    lazy = LazyCacheNode.execute(model, 3.0, 0.0, 1.0, False).args[0]
    assert difference(sample(lazy), exact) > 1
