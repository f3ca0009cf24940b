"""Whatever comes: dense landmarks, the fit to them and performances end in finite numbers or in a typed error.

A few dozen cases of each run with the suite. Ten thousand, on 16 cores in parts:
`FANTASYID_FUZZ=10000 python run.py test tests/core/reconstruction/test_fitting_fuzz.py -n 16 --dist load -k many_more`
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from fantasyid_core.detection import dense_landmarks, face_track
from fantasyid_core.detection.dense_pose import pose_from_dense
from fantasyid_core.detection.face_track import FaceTrack
from fantasyid_core.errors import FaceNotFoundError, MeshError, WeightsError
from fantasyid_core.reconstruction.dense_fit import fit_dense
from fantasyid_core.reconstruction.face_mesh import FaceMesh
from fantasyid_core.reconstruction.performance import (
    AFTERWARDS,
    Performance,
    capture,
    load_performance,
    perform,
    save_performance,
)
from tools.measure.dense import FIXTURE
from tools.measure.reconstruction import face_model

CASES = os.environ.get("FANTASYID_FUZZ")
PARTS = 16
MODEL = face_model()
ODD = [0.0, 1e30, -1e30, math.nan, math.inf]
wild = st.floats(width=32) | st.sampled_from(ODD)
usual = st.floats(-60, 90, width=32)
seeds = st.integers(0, 1 << 32)


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def photos(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """A small photo of noise, of one colour or with stripes, and five landmarks from anywhere."""
    height, width = draw(st.integers(1, 64)), draw(st.integers(1, 64))
    noise = torch.rand(height, width, 3, generator=drawn(draw(seeds)))
    photo = draw(st.sampled_from([noise, torch.zeros_like(noise), torch.ones_like(noise), noise[:1].expand_as(noise)]))
    numbers = draw(st.lists(draw(st.sampled_from([usual, usual, wild])), min_size=10, max_size=10))
    return photo, torch.tensor(numbers).view(1, 5, 2)


def clip() -> torch.Tensor:
    """(T, 478, 3) px, as the network read a rendered clip."""
    with safe_open(FIXTURE, "pt") as file:
        return file.get_tensor("clips")[0]


CLIP = clip()


@st.composite
def tracks(draw: st.DrawFn) -> FaceTrack:
    """Up to six frames of a clip, moved, enlarged or without depth; or points from anywhere; some frames lost."""
    count = draw(st.integers(1, 6))
    points = CLIP[:count].clone()
    kind = draw(st.sampled_from(["a clip", "a clip", "one point", "noise", "odd"]))
    if kind == "noise":
        points = 100 * torch.randn(count, 478, 3, generator=drawn(draw(seeds)))
    elif kind == "one point":
        points = points[:, :1].expand(-1, 478, -1).clone()
    elif kind == "odd":
        points[draw(st.integers(0, count - 1)), draw(st.integers(0, 477))] = draw(st.sampled_from(ODD))
    points = points * draw(st.sampled_from([1.0, 1e-6, 1e3, -1.0])) + draw(st.sampled_from([0.0, -500.0, 1e6]))
    if draw(st.booleans()):
        points[..., 2] = 0
    present = torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    confidence = torch.tensor(draw(st.lists(st.floats(0, 1, width=32), min_size=count, max_size=count)))
    fps = draw(st.sampled_from([25.0, 1.0, 240.0]))
    return FaceTrack(points.masked_fill(~present[:, None, None], torch.nan), confidence * present, present, fps)


@st.composite
def acts(draw: st.DrawFn) -> dict[str, Any]:
    """Whose mesh performs, and how."""
    code = draw(st.sampled_from([torch.zeros(100), torch.randn(100, generator=drawn(draw(seeds))), None]))
    return {
        "mesh": FaceMesh(draw(st.sampled_from([1.0, 1000.0])) * MODEL.template, MODEL.faces, code),
        "expression_strength": draw(st.floats(0, 3)),
        "head_strength": draw(st.floats(0, 3)),
        "first": draw(st.integers(-8, 8)),
        "last": draw(st.integers(-8, 8)),
        "length": draw(st.integers(-1, 12)),
        "afterwards": draw(st.sampled_from([*AFTERWARDS, "stop"])),
    }


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Something that happens to a file."""
    at, byte, length = draw(st.integers(0, 10_000)), draw(st.integers(0, 255)), draw(st.integers(0, 64))

    def spoil(data: bytes) -> bytes:
        place = at % len(data)
        return draw(
            st.sampled_from(
                [
                    data[:place],
                    data[:place] + bytes([byte]) * length + data[place + length :],
                    data[:place] + data[place + length :],
                    data + bytes(length),
                ]
            )
        )

    return spoil


def check_photo(photo: torch.Tensor, landmarks: torch.Tensor) -> None:
    points, confidence = dense_landmarks.read(photo, landmarks)
    assert points.shape == (1, 478, 3)
    assert ((confidence >= 0) & (confidence <= 1)).all()
    assert pose_from_dense(points).isfinite().all()
    if not points.isfinite().all():
        with pytest.raises(MeshError, match=r"\.$"):
            fit_dense(MODEL, points[None])
    else:
        assert all(x.isfinite().all() for x in vars(fit_dense(MODEL, points[None], iterations=3)).values())


def check_landmarks_of_others(track: FaceTrack) -> None:
    """As another network's come: of every frame its faces, no face where that is lost."""
    frames = [[points] if seen else [] for points, seen in zip(track.points, track.present.tolist(), strict=True)]
    try:
        found = face_track.from_landmarks(frames, track.fps)
    except FaceNotFoundError as error:
        check_error(error)
        return
    assert found.points[found.present].isfinite().all()
    assert not found.confidence[~found.present].any()


def check_performance(track: FaceTrack, act: dict[str, Any], spoil: Callable[[bytes], bytes], path: Path) -> None:
    try:
        captured = capture(MODEL, track)
    except MeshError as error:
        check_error(error)
        return
    assert captured.frames == len(track.present)
    assert_finite(captured)
    try:
        assert perform(MODEL, performance=captured, **act).vertices().isfinite().all()
    except MeshError as error:
        check_error(error)
    save_performance(captured, path)
    loaded = load_performance(path)
    assert torch.equal(loaded.pose, captured.pose)
    path.write_bytes(spoil(path.read_bytes()))
    try:
        assert_finite(load_performance(path))
    except WeightsError as error:
        check_error(error, path.name)


def check_error(error: Exception, about: str = "") -> None:
    """It is a sentence, and says which file."""
    assert str(error).endswith(".")
    assert about in str(error)


def assert_finite(performance: Performance) -> None:
    assert all(x.isfinite().all() for x in vars(performance).values() if isinstance(x, torch.Tensor))


def few(cases: int) -> settings:
    return settings(
        max_examples=cases,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


many = settings(
    max_examples=max(1, int(CASES or 0) // PARTS),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
in_parts = pytest.mark.parametrize("part", range(PARTS))
asked_for = pytest.mark.skipif(CASES is None, reason="FANTASYID_FUZZ says how many cases, 10000 for instance")


@few(25)
@given(photos())
def test_any_photo_and_landmarks(case):
    check_photo(*case)


@few(25)
@given(tracks())
def test_any_landmarks_of_another_network(track):
    check_landmarks_of_others(track)


@few(8)
@given(tracks(), acts(), damages())
def test_any_track_is_captured_performed_and_kept(tmp_path, track, act, spoil):
    check_performance(track, act, spoil, tmp_path / "act.safetensors")


@asked_for
@in_parts
@many
@given(photos())
def test_many_more_photos_and_landmarks(part, case):
    check_photo(*case)


@asked_for
@in_parts
@many
@given(tracks(), acts(), damages())
def test_many_more_tracks(tmp_path, part, track, act, spoil):
    check_landmarks_of_others(track)
    check_performance(track, act, spoil, tmp_path / "act.safetensors")
