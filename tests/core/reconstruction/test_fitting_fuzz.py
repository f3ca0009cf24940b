"""Whatever photo and landmarks come: dense landmarks and the fit to them end in finite numbers or in a typed error."""

import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fantasyid_core.detection import dense_landmarks
from fantasyid_core.detection.dense_pose import pose_from_dense
from fantasyid_core.errors import MeshError
from fantasyid_core.reconstruction.dense_fit import fit_dense
from tools.measure.reconstruction import face_model

CASES = os.environ.get("FANTASYID_FUZZ")
MODEL = face_model()
wild = st.floats(width=32) | st.sampled_from([0.0, 1e30, -1e30, math.nan, math.inf])
usual = st.floats(-60, 90, width=32)


@st.composite
def photos(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """A small photo of noise, of one colour or with stripes, and five landmarks from anywhere."""
    height, width = draw(st.integers(1, 64)), draw(st.integers(1, 64))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 32)))
    noise = torch.rand(height, width, 3, generator=generator)
    photo = draw(st.sampled_from([noise, torch.zeros_like(noise), torch.ones_like(noise), noise[:1].expand_as(noise)]))
    numbers = draw(st.lists(draw(st.sampled_from([usual, usual, wild])), min_size=10, max_size=10))
    return photo, torch.tensor(numbers).view(1, 5, 2)


def check(photo: torch.Tensor, landmarks: torch.Tensor) -> None:
    points, confidence = dense_landmarks.read(photo, landmarks)
    assert points.shape == (1, 478, 3)
    assert ((confidence >= 0) & (confidence <= 1)).all()
    assert pose_from_dense(points).isfinite().all()
    if not points.isfinite().all():
        with pytest.raises(MeshError, match=r"\.$"):
            fit_dense(MODEL, points[None])
    else:
        assert all(x.isfinite().all() for x in vars(fit_dense(MODEL, points[None], iterations=3)).values())


@settings(max_examples=50, deadline=None, derandomize=True)
@given(photos())
def test_any_photo_and_landmarks(case: tuple[torch.Tensor, torch.Tensor]):
    check(*case)


@pytest.mark.skipif(CASES is None, reason="FANTASYID_FUZZ says how many cases, 10000 for instance")
@settings(max_examples=int(CASES or 1), deadline=None)
@given(photos())
def test_many_more_photos_and_landmarks(case: tuple[torch.Tensor, torch.Tensor]):
    check(*case)
