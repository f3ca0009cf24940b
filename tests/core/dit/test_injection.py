"""Layer-aware injection: what an identity adds, where, when and how strongly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fantasyid_core.dit.injection import (
    BatchInjector,
    Injection,
    InjectionRun,
    LayerAttention,
    SampleInjector,
    check,
    parse_curve,
    stretch,
)
from fantasyid_core.dit.region import Region, TokenGrid
from fantasyid_core.errors import IdentityError

DIM, TOKEN_DIM, INNER, HEAD = 24, 20, 32, 8


@pytest.fixture
def layer() -> LayerAttention:
    torch.manual_seed(0)
    return LayerAttention(DIM, TOKEN_DIM, INNER, HEAD)


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn(2, 7, DIM, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(5, TOKEN_DIM, generator=torch.Generator().manual_seed(2))


def written_out(layer: LayerAttention, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The plain twin: attention head by head with an explicit softmax, as the release writes it."""
    q = layer.to_q(layer.norm2(hidden))
    k, v = layer.to_kv(layer.norm1(tokens)).chunk(2, -1)
    heads = []
    for i in range(INNER // HEAD):
        part = slice(i * HEAD, (i + 1) * HEAD)
        weight = (q[..., part] @ k[..., part].transpose(-1, -2) / HEAD**0.5).softmax(-1)
        heads.append(weight @ v[..., part])
    return layer.to_out(torch.cat(heads, -1))


def test_fused_attention_equals_the_written_out_one(layer, hidden, tokens):
    fused = layer(hidden, layer.keys_values(tokens[None]))
    torch.testing.assert_close(fused, written_out(layer, hidden, tokens[None].expand(2, -1, -1)))


def test_strength_scales_what_is_added(layer, hidden, tokens):
    def added(strength: float) -> torch.Tensor:
        return InjectionRun([Injection(tokens, strength)]).add_to(hidden, 0, layer, 0.5) - hidden

    torch.testing.assert_close(added(0.5), 0.5 * added(1.0))
    assert InjectionRun([Injection(tokens, 0.0)]).add_to(hidden, 0, layer, 0.5) is hidden


def test_layer_weights_choose_the_layer(layer, hidden, tokens):
    run = InjectionRun([Injection(tokens, layer_weights=(0.0, 1.0))])
    assert run.add_to(hidden, 0, layer, 0.5) is hidden
    assert not torch.equal(run.add_to(hidden, 1, layer, 0.5), hidden)


@pytest.mark.parametrize(
    ("progress", "is_active"), [(0.0, False), (0.25, True), (0.5, True), (0.75, True), (0.76, False)]
)
def test_start_and_end_bound_the_part_of_the_run(layer, hidden, tokens, progress, is_active):
    run = InjectionRun([Injection(tokens, start=0.25, end=0.75)])
    assert (run.add_to(hidden, 0, layer, progress) is not hidden) == is_active
    assert run.depends_on_progress


def test_two_identities_add_up_from_the_same_hidden_state(layer, hidden, tokens):
    other = tokens.flip(0) * 2
    one, two = (InjectionRun([Injection(t)]).add_to(hidden, 0, layer, 0.0) - hidden for t in (tokens, other))
    both = InjectionRun([Injection(tokens), Injection(other)]).add_to(hidden, 0, layer, 0.0) - hidden
    torch.testing.assert_close(both, one + two)


def test_an_unconditional_branch_goes_without_an_identity_that_guidance_leads_to(layer, hidden, tokens):
    other = tokens.flip(0)
    run = InjectionRun([Injection(tokens, guide_identity=True), Injection(other)])
    made = run.add_to(hidden, 0, layer, 0.0, unconditional=(False, True))
    alone, in_both = (InjectionRun([Injection(t)]).add_to(hidden, 0, layer, 0.0) - hidden for t in (tokens, other))
    torch.testing.assert_close(made[:1], (hidden + alone + in_both)[:1])
    torch.testing.assert_close(made[1:], (hidden + in_both)[1:])
    torch.testing.assert_close(run.add_to(hidden, 0, layer, 0.0), hidden + alone + in_both)


def test_keys_and_values_are_computed_once_a_run(layer, hidden, tokens, monkeypatch):
    calls = []
    original = layer.keys_values
    monkeypatch.setattr(layer, "keys_values", lambda t: calls.append(1) or original(t))
    run = InjectionRun([Injection(tokens)])
    for _ in range(5):
        run.add_to(hidden, 0, layer, 0.0)
    assert len(calls) == 1
    InjectionRun([Injection(tokens)]).add_to(hidden, 0, layer, 0.0)
    assert len(calls) == 2


@pytest.mark.parametrize("part", [(0.7, 0.3), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0), (0.0, float("nan"))])
def test_a_part_of_the_run_that_is_none_is_refused(tokens, part):
    with pytest.raises(IdentityError, match="start_percent not after end_percent"):
        Injection(tokens, start=part[0], end=part[1])
    Injection(tokens, start=0.5, end=0.5)


def test_the_injection_computes_with_the_attention_and_norms_of_the_call(layer, hidden, tokens):
    asked = []

    def attend(q, k, v):
        asked.append((q.shape[2], k.shape[2]))
        return torch.zeros_like(q).transpose(1, 2).flatten(2)

    injector = BatchInjector(InjectionRun([Injection(tokens)]), attend=attend)
    torch.testing.assert_close(injector.add_to(hidden, 0, layer, 0.0), hidden)
    assert asked == [(hidden.shape[1], len(tokens))]
    flat = BatchInjector(InjectionRun([Injection(tokens)]), weights_of=lambda norm, like: (0 * norm.weight, norm.bias))
    plain = InjectionRun([Injection(tokens)]).add_to(hidden, 0, layer, 0.0)
    assert (flat.add_to(hidden, 0, layer, 0.0) - plain).abs().max() > 0


@pytest.fixture
def video() -> torch.Tensor:
    """Visual tokens of two samples of three latent frames of four tokens."""
    return torch.randn(2, 12, DIM, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def frame_tokens() -> torch.Tensor:
    """Two vertex tokens of each of three latent frames."""
    return torch.randn(3, 2, TOKEN_DIM, generator=torch.Generator().manual_seed(4))


GRID = TokenGrid(3, 2, 2)


def frame_by_frame(layer: LayerAttention, video: torch.Tensor, tokens: torch.Tensor, frames) -> torch.Tensor:
    """The plain twin: each latent frame (B, 4, DIM) alone, with the face tokens and its own vertex tokens."""
    every = [torch.cat([tokens[:3], own]) for own in frames]
    parts = zip(video.split(4, 1), every, strict=True)
    return torch.cat([written_out(layer, part, own[None].expand(2, -1, -1)) for part, own in parts], 1)


def test_each_latent_frame_sees_the_face_tokens_and_its_own_vertex_tokens(layer, video, tokens, frame_tokens):
    run = InjectionRun([Injection(tokens, 0.5, frame_tokens=frame_tokens)])
    expected = frame_by_frame(layer, video, tokens, frame_tokens)
    torch.testing.assert_close(run.add_to(video, 0, layer, 0.0, grid=GRID) - video, 0.5 * expected)
    torch.testing.assert_close(run.add_to(video, 0, layer, 0.0), run.add_to(video, 0, layer, 0.0, grid=GRID))
    in_training = torch.cat([tokens[None, :3].expand(3, -1, -1), frame_tokens], 1).expand(2, -1, -1, -1)
    for with_gradients in (True, False):
        with torch.set_grad_enabled(with_gradients):
            added = SampleInjector(in_training).add_to(video, 0, layer, 0.0) - video
        torch.testing.assert_close(added, expected)


def test_a_face_that_rests_in_all_frames_is_the_constant_one(layer, video, tokens):
    still = Injection(tokens, frame_tokens=tokens[3:].expand(3, -1, -1))
    constant = InjectionRun([Injection(tokens)]).add_to(video, 0, layer, 0.0)
    torch.testing.assert_close(InjectionRun([still]).add_to(video, 0, layer, 0.0), constant, rtol=0, atol=1e-6)
    as_released = video + layer(video, layer.keys_values(tokens[None]))
    assert torch.equal(constant, as_released)


def test_frames_of_a_window_and_after_the_performance_see_theirs(layer, video, tokens, frame_tokens):
    run = InjectionRun([Injection(tokens, frame_tokens=frame_tokens)])

    def added(grid: TokenGrid) -> torch.Tensor:
        return run.add_to(video, 0, layer, 0.0, grid=grid) - video

    def expected(*numbers: int) -> torch.Tensor:
        return frame_by_frame(layer, video, tokens, frame_tokens[list(numbers)])

    torch.testing.assert_close(added(TokenGrid(5, 2, 2, (0, 1, 4))), expected(0, 1, 2))
    torch.testing.assert_close(added(TokenGrid(5, 2, 2, (0, 3, 4))), expected(0, 2, 2))
    short = run.add_to(video[:, :8], 0, layer, 0.0, grid=TokenGrid(2, 2, 2)) - video[:, :8]
    torch.testing.assert_close(short, expected(0, 1, 2)[:, :8])


def test_an_acting_identity_takes_regions_guidance_and_others_beside_it(layer, video, tokens, frame_tokens):
    mask = torch.zeros(1, 2, 2)
    mask[0, 0, 0] = 1
    acting = Injection(tokens, guide_identity=True, region=Region(mask), frame_tokens=frame_tokens)
    both = InjectionRun([acting, Injection(tokens.flip(0))])
    made = both.add_to(video, 0, layer, 0.0, grid=GRID, unconditional=(True, False))
    other = InjectionRun([Injection(tokens.flip(0))]).add_to(video, 0, layer, 0.0)
    own = frame_by_frame(layer, video, tokens, frame_tokens) * mask.flatten().repeat(3)[:, None]
    torch.testing.assert_close(made, torch.stack([other[0], (other + own)[1]]))


def test_keys_and_values_of_frames_are_computed_once_a_run_and_anew_in_windows(
    layer, video, tokens, frame_tokens, monkeypatch
):
    calls = []
    original = layer.keys_values
    monkeypatch.setattr(layer, "keys_values", lambda t: calls.append(tuple(t.shape[:-1])) or original(t))
    run = InjectionRun([Injection(tokens, frame_tokens=frame_tokens)])
    for _ in range(3):
        run.add_to(video, 0, layer, 0.0, grid=GRID)
    assert calls == [(1, 3), (1, 3, 2), (3, 2)]  # a call for frames flattens them and calls again
    for _ in range(2):
        run.add_to(video, 0, layer, 0.0, grid=TokenGrid(5, 2, 2, (0, 1, 2)))
    assert len(calls) == 7


def test_misfits_are_refused(layer, tokens):
    layers = nn.ModuleList([layer])
    check(Injection(tokens), layers)
    with pytest.raises(IdentityError, match="no identity injection layers"):
        check(Injection(tokens), nn.ModuleList())
    with pytest.raises(IdentityError, match="width 19"):
        check(Injection(tokens[:, :19]), layers)
    with pytest.raises(IdentityError, match=r"single frames have shape \(3, 6, 20\)"):
        check(Injection(tokens, frame_tokens=torch.zeros(3, 6, TOKEN_DIM)), layers)
    with pytest.raises(IdentityError, match="2 layer weights"):
        check(Injection(tokens, layer_weights=(1.0, 1.0)), layers)


def test_curves_are_stretched_over_the_layers():
    assert parse_curve("", 4) == ()
    assert parse_curve("0.5", 3) == (0.5, 0.5, 0.5)
    assert parse_curve("0, 1", 3) == pytest.approx((0.0, 0.5, 1.0))
    for wrong in ("a", "1, nan", "1; 2", "inf"):
        with pytest.raises(IdentityError):
            parse_curve(wrong, 3)


@given(points=st.lists(st.floats(-10, 10), min_size=1, max_size=12), layers=st.integers(1, 60))
def test_a_stretched_curve_has_a_weight_per_layer_within_its_range(points, layers):
    curve = stretch(points, layers)
    assert len(curve) == layers
    assert min(points) - 1e-6 <= min(curve) <= max(curve) <= max(points) + 1e-6


@given(text=st.text(max_size=30))
def test_any_text_is_a_curve_or_a_clear_error(text):
    try:
        curve = parse_curve(text, 5)
    except IdentityError:
        return
    assert len(curve) in (0, 5)
