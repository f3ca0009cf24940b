"""Every clearly visible face of the real photos that are installed is found, and nothing certain that is none."""

import pytest

from fantasyid_core.detection.faces import detect_batch
from tools.measure.labelled_faces import LabelledPhoto, count_errors, photos

PHOTOS = [label for label in photos() if max(label.read().shape) <= 700]
WITH_PEOPLE = [label for label in photos() if label.people and label not in PHOTOS]


def found(label: LabelledPhoto) -> tuple[int, int]:
    (faces,) = detect_batch(label.read()[None])
    return count_errors(label, [face.box.tolist() for face in faces], [face.score for face in faces])


@pytest.mark.skipif(not PHOTOS, reason="no package with photos is installed")
def test_enough_photos_are_here():
    assert sum(len(label.people) for label in PHOTOS + WITH_PEOPLE) >= 1


@pytest.mark.parametrize("label", PHOTOS + WITH_PEOPLE, ids=lambda label: label.name)
def test_no_face_is_missed_and_none_invented(label: LabelledPhoto):
    """The large ones without people: `python -m benchmarks.detection`."""
    assert found(label) == (0, 0)
