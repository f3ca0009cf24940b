"""Windows over a long video: what each covers, and how they are blended."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fantasyid_core.errors import SamplingError
from fantasyid_core.sampling.windows import Windows, windows

ANY = st.builds(
    lambda length, share, anchored: Windows(length, round(share * (length - anchored - 1)), anchored),
    st.integers(2, 20),
    st.floats(0, 1),
    st.booleans(),
)


@given(ANY, st.integers(1, 120))
def test_every_frame_is_seen_by_windows_of_the_length_that_the_model_knows(plan, frames):
    cut = plan.over(frames)
    assert {frame for window in cut for frame in window} == set(range(frames))
    assert all(len(window) == min(frames, plan.length) for window in cut)


@given(ANY, st.integers(1, 120))
def test_frames_of_a_window_follow_each_other_after_its_anchor(plan, frames):
    for window in plan.over(frames):
        own = window[1:] if plan.anchored else window
        assert own == list(range(own[0], own[0] + len(own))) if own else window == [0]


@given(ANY, st.integers(2, 120))
def test_neighbours_overlap_as_asked(plan, frames):
    cut = plan.over(frames)
    for before, after in pairwise(cut):
        assert len(set(before[plan.anchored :]) & set(after[plan.anchored :])) >= plan.overlap


@given(ANY, st.integers(1, 120))
def test_weights_reach_every_frame_and_the_first_counts_in_the_first_window_only(plan, frames):
    total = [0.0] * frames
    for number, window in enumerate(plan.over(frames)):
        weights = plan.weights(window)
        assert len(weights) == len(window)
        assert all(0 <= weight <= 1 for weight in weights)
        if number and plan.anchored:
            assert (window[0], weights[0]) == (0, 0.0)
        for frame, weight in zip(window, weights, strict=True):
            total[frame] += weight
    assert min(total) > 0


def test_neighbours_fade_into_each_other():
    plan = Windows(5, 3)
    first, second = plan.over(7)
    assert (first, second) == ([0, 1, 2, 3, 4], [2, 3, 4, 5, 6])
    assert plan.weights(first)[2:] == [0.75, 0.5, 0.25]
    assert plan.weights(second)[:3] == [0.25, 0.5, 0.75]


def test_work_grows_with_the_length_and_no_faster():
    plan = windows(49, 12)
    assert [len(plan.over((frames - 1) // 4 + 1)) for frames in (49, 97, 193, 385)] == [1, 3, 5, 10]


def test_a_video_of_one_window_is_cut_nowhere():
    assert windows(49, 12, anchored=True).over(13) == [list(range(13))]


@pytest.mark.parametrize(
    ("frames", "overlap", "said"),
    [
        (48, 12, "multiple of 4 plus 1"),
        (0, 0, "multiple of 4 plus 1"),
        (25, 25, "expected 0 to 20"),
        (25, -4, "expected 0 to 20"),
        (1, 4, "expected 0 to 0"),
    ],
)
def test_windows_that_cannot_be_are_refused(frames, overlap, said):
    with pytest.raises(SamplingError, match=said):
        windows(frames, overlap, anchored=True)


@pytest.fixture(scope="module")
def found(host_script, standin, tmp_path_factory) -> dict:
    """`scripts/long_video.py` on a model with learned positions and a first frame, in the real host."""
    return host_script("long_video.py", standin, tmp_path_factory.mktemp("host"))


def test_a_model_of_fixed_positions_takes_more_frames_in_windows_only(found):
    assert "Longer videos of its size need FantasyID Long Video" in found["without windows"]
    assert found["shape"][2] == 3 * found["known"]


def test_a_video_of_one_window_is_bit_equal_to_one_without_windows(found):
    assert found["one window"] == [True, True]


def test_model_and_memory_estimate_see_one_window_at_a_time(found):
    assert found["frames at once"] == [found["known"]]
    assert found["frames that the host reckons with"] == found["known"]


def test_calls_grow_with_the_windows(found):
    known = found["known"]
    wanted = {str(frames): len(Windows(known, 1).over(frames)) for frames in (known, 2 * known, 3 * known)}
    assert found["calls a step"] == wanted


def test_the_reference_image_is_in_the_first_window_only_and_reaches_no_other(found):
    known = found["known"]
    assert found["image in the first window"] == [True] + [False] * (known - 1)
    assert not found["image in later windows"]
    assert found["frames that the image reaches"] == [True] * known + [False] * (2 * known)


def test_an_anchored_window_sees_first_frame_and_image_but_predicts_neither(found):
    assert found["anchored image"] == [[True] + [False] * (found["known"] - 1)] * len(found["anchored image"])
    assert found["anchored noise"]
    assert found["first frame of the first window alone"] < 1e-6


def test_identity_is_computed_once_for_all_windows(found):
    assert found["keys and values computed"] == 2


def test_every_sampler_runs_in_windows(found):
    assert found["samplers"] == {"release": True, "dpm_2": True, "euler": True}


def test_steps_are_cached_for_each_window(found):
    far, finite = found["step cache"]
    assert finite
    assert far > 0


def test_the_hosts_own_context_windows_work_on_our_model(found):
    assert found["stock node"]
    assert found["stock node's frames"] == [found["known"]]


def test_the_hosts_frame_before_a_window_is_left_out_by_ours_and_explained_where_the_stock_node_asks_for_it(found):
    """`causal_window_fix`: one latent more a window than learned positions are for, unless windows are shorter."""
    # the same latents on every ComfyUI
    assert found["some latents"] == pytest.approx([3.39489, 0.217019, -0.31775, 2.89679, 2.459677, 3.491687], abs=1e-3)
    if "stock node, fixed" not in found:
        pytest.skip("this ComfyUI has no causal_window_fix")
    assert found["stock node, fixed"] == [True, [found["known"] - 1, found["known"]]]
    assert "Switch causal_window_fix off" in found["stock node, too long"]


def test_the_node_takes_length_and_first_frame_from_the_model(found):
    length, overlap, cut = found["node"]
    assert (length, overlap) == (found["known"], 1)
    assert cut[1][0] == 0, "a model that was trained with a first frame sees it in every window"
    assert found["plain untouched"]
