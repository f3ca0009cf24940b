"""Videos longer than the model knows, in ComfyUI's context windows: a model of learned positions and a first frame."""

import comfy.model_base
import pytest
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from pack.fantasyid_core.dit.injection import Injection, LayerAttention
from pack.fantasyid_core.dit.step_cache import CacheSettings
from pack.fantasyid_core.errors import SamplingError
from pack.fantasyid_core.sampling.windows import Windows
from pack.nodes.host.dit import NativeTransformer
from pack.nodes.host.options import add_injection, set_step_cache
from pack.nodes.host.sampler import ReleaseSampler
from pack.nodes.host.windows import set_windows
from pack.nodes.long_video import FantasyIDLongVideo
from pack.tests.support import in_comfyui
from pack.tests.support.in_comfyui import difference, guider, load
from torch import Tensor

KNOWN = 7  # latents of the 25 frames that the stand-in knows
LONG = 3 * KNOWN
SEED = torch.Generator().manual_seed(0)
NOISE = torch.randn(1, 16, LONG, 16, 24, generator=SEED)
FIRST, OTHER = torch.randn(2, 1, 16, 1, 16, 24, generator=SEED)
TEXT, NEGATIVE = torch.randn(2, 1, 226, 32, generator=SEED)
TOKENS = torch.randn(20, 64, generator=SEED)
WIDGETS = ContextWindowsManualNode.define_schema().inputs
FIX = "causal_window_fix"  # of ComfyUI since 0.21: the frame before it in front of each later window
HAS_FIX = any(widget.id == FIX for widget in WIDGETS)


def sample(model, frames: int = LONG, first: Tensor = FIRST, steps: int = 2, sampler="ddim") -> Tensor:
    image = {"concat_latent_image": first}
    return in_comfyui.sample(guider(model, [[TEXT, image]], [[NEGATIVE, image]]), NOISE[:, :, :frames], steps, sampler)


@pytest.fixture(scope="module")
def plain(standin):
    return add_injection(load(standin), Injection(TOKENS))


@pytest.fixture(scope="module")
def cut(plain):
    return set_windows(plain, Windows(KNOWN, 1))


@pytest.fixture(scope="module")
def anchored(plain):
    return set_windows(plain, Windows(KNOWN, 1, anchored=True))


@pytest.fixture
def seen(monkeypatch) -> list[Tensor]:
    """What the transformer is given in this test, call by call."""
    inputs, predict = [], NativeTransformer.forward

    def record(self, x: Tensor, *args, **kwargs) -> Tensor:
        inputs.append(x)
        return predict(self, x, *args, **kwargs)

    monkeypatch.setattr(NativeTransformer, "forward", record)
    return inputs


def frames_with_image(x: Tensor) -> list[bool]:
    """Where the channels of the image condition are not zero."""
    return [bool(frame.any()) for frame in x[0, 16:].unbind(1)]


def test_a_model_of_fixed_positions_takes_more_frames_in_windows_only(plain, cut):
    with pytest.raises(SamplingError, match="Longer videos of its size need FantasyID Long Video"):
        sample(plain)
    assert sample(cut).shape[2] == LONG


def test_a_video_of_one_window_is_bit_equal_to_one_without_windows(plain, cut, anchored):
    alone = sample(plain, KNOWN)
    assert torch.equal(sample(cut, KNOWN), alone)
    assert torch.equal(sample(anchored, KNOWN), alone)


def test_model_and_memory_estimate_see_one_window_at_a_time(cut, seen, monkeypatch):
    frames, memory = [], comfy.model_base.BaseModel.memory_required

    def record(self, shape, *args, **kwargs) -> float:
        frames.append(shape[2])
        return memory(self, shape, *args, **kwargs)

    monkeypatch.setattr(comfy.model_base.BaseModel, "memory_required", record)
    sample(cut)
    assert {x.shape[2] for x in seen} == {KNOWN}
    assert max(frames) == KNOWN


@pytest.mark.parametrize("frames", [KNOWN, 2 * KNOWN, 3 * KNOWN])
def test_calls_grow_with_the_windows(cut, seen, frames):
    sample(cut, frames, steps=2)
    assert len(seen) == 2 * len(Windows(KNOWN, 1).over(frames))


def test_the_reference_image_is_in_the_first_window_only_and_reaches_no_other(cut, seen):
    one = sample(cut, steps=1)
    first, *later = map(frames_with_image, seen)
    assert first == [True] + [False] * (KNOWN - 1)
    assert later
    assert not any(map(any, later))
    other = sample(cut, first=OTHER, steps=1)
    reached = [not torch.equal(a, b) for a, b in zip(one.unbind(2), other.unbind(2), strict=True)]
    assert reached == [True] * KNOWN + [False] * (2 * KNOWN)


def test_an_anchored_window_sees_first_frame_and_image_but_predicts_neither(plain, anchored, seen):
    whole = sample(anchored, steps=1)
    for x in seen:
        assert frames_with_image(x) == [True] + [False] * (KNOWN - 1)
        assert torch.equal(x[:, :16, 0], seen[0][:, :16, 0])
    alone = sample(plain, KNOWN, steps=1)
    assert difference(whole[:, :, 0], alone[:, :, 0]) < 1e-6


def test_identity_is_computed_once_for_all_windows(cut, monkeypatch):
    calls, keys_values = [], LayerAttention.keys_values
    monkeypatch.setattr(
        LayerAttention, "keys_values", lambda self, tokens: calls.append(1) or keys_values(self, tokens)
    )
    sample(cut)
    assert len(calls) == 2, "once a layer"


def test_each_window_sees_the_part_of_the_performance_that_it_is_of(standin, cut, caplog):
    moving = TOKENS[8:] + 0.5 * torch.randn(LONG, 12, 64, generator=torch.Generator().manual_seed(1))
    constant = sample(cut)

    def acted(frame_tokens: Tensor) -> Tensor:
        injection = Injection(TOKENS, frame_tokens=frame_tokens)
        return sample(set_windows(add_injection(load(standin), injection), Windows(KNOWN, 1)))

    assert difference(acted(TOKENS[None, 8:]), constant) < 1e-5
    assert "A face acts for 0.1 s, but the video takes 10.1 s: its last moment holds from then on." in caplog.text
    begins = TOKENS[8:].repeat(LONG, 1, 1)
    begins[-3:] = moving[-3:]
    changed = (acted(begins) - constant).abs().amax((0, 1, 3, 4))
    assert not changed[:KNOWN].any()
    assert changed[-3:].all()


def test_every_sampler_runs_in_windows(cut):
    for sampler in (ReleaseSampler("dpm", 2, torch.Generator()), "dpm_2", "euler"):
        assert sample(cut, sampler=sampler).isfinite().all(), sampler


def test_steps_are_cached_for_each_window(cut):
    cached = sample(set_step_cache(cut, CacheSettings(1e9, start=0.0, most=1)), steps=3)
    assert cached.isfinite().all()
    assert difference(sample(cut, steps=3), cached) > 0


def in_windows_of_comfyui(model, length: int, **more) -> Tensor:
    """Latents after ComfyUI's own node; its other widgets at their defaults."""
    inputs = {widget.id: widget.default for widget in WIDGETS if getattr(widget, "default", None) is not None}
    inputs |= {"context_length": length, "context_overlap": 1, "context_schedule": "standard_static", "dim": 2, **more}
    return sample(ContextWindowsManualNode.execute(**inputs | {"model": model, "fuse_method": "pyramid"}).args[0])


def test_comfyui_s_own_context_windows_work_on_our_model(plain, seen):
    latents = in_windows_of_comfyui(plain, KNOWN, **{FIX: False} if HAS_FIX else {})
    assert latents.isfinite().all()
    assert {x.shape[2] for x in seen} == {KNOWN}


def test_ours_leave_out_comfyui_s_frame_before_a_window(cut):
    """The same latents on every ComfyUI."""
    latents = sample(cut)[0, 0, ::4, 3, 5].tolist()
    assert latents == pytest.approx([3.39489, 0.217019, -0.31775, 2.89679, 2.459677, 3.491687], abs=1e-3)


@pytest.mark.skipif(not HAS_FIX, reason="this ComfyUI has no causal_window_fix")
def test_comfyui_s_frame_before_a_window_is_explained_where_its_node_asks_for_it(plain, seen):
    """One latent more a window than learned positions are for, unless windows are shorter."""
    assert in_windows_of_comfyui(plain, KNOWN - 1).isfinite().all()
    assert {x.shape[2] for x in seen} == {KNOWN - 1, KNOWN}
    with pytest.raises(SamplingError, match="Switch causal_window_fix off"):
        in_windows_of_comfyui(plain, KNOWN)


def test_the_node_takes_length_and_first_frame_from_the_model(plain):
    (model,) = FantasyIDLongVideo.run(plain, 0, 4, "as trained").args
    handler = model.model_options["context_handler"]
    assert (handler.context_length, handler.context_overlap) == (KNOWN, 1)
    second = handler.context_schedule.func(LONG, handler, {})[1]
    assert second[0] == 0, "a model that was trained with a first frame sees it in every window"
    assert "context_handler" not in plain.model_options
    assert model.model is plain.model
