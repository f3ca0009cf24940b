"""The landmark fit on synthetic people whose shape is known, with the face model that ships with FantasyID-nano."""

import pytest

from fantasyid_core.detection.faces import detect
from fantasyid_core.reconstruction import face_mesh, landmark_fit
from tools.measure.reconstruction import Photos, by_photos, face_model, photos

PEOPLE = 10


@pytest.fixture(scope="module")
def people() -> Photos:
    return photos(PEOPLE)


@pytest.fixture(scope="module")
def error(people) -> dict[str, tuple[float, float]]:
    """Millimetres: as they are, and after the best shift, turn and scale."""
    return by_photos(people)


def test_every_further_photo_of_a_person_brings_the_shape_nearer_to_the_truth(error):
    """As docs/reconstruction.md shows for a hundred people."""
    aligned = {name: after for name, (_, after) in error.items()}
    falling = [aligned[name] for name in ("mean face", "1 photo", "2 photos", "4 photos", "8 photos")]
    assert falling == sorted(falling, reverse=True)
    assert aligned["8 photos"] < 0.8 * aligned["1 photo"] < 0.5 * aligned["mean face"]
    assert aligned["8 photos"] < aligned["mean of 8 single fits"]
    assert aligned["8 photos"] < aligned["best of 8 single fits, chosen by the truth"]


def test_size_which_no_photo_shows_does_not_follow_the_noise(error):
    """Without any alignment the error must not grow with the number of photos either."""
    assert error["8 photos"][0] < error["1 photo"][0] < error["mean face"][0]


def test_the_detector_s_five_landmarks_bring_a_face_nearer_than_the_mean_face(people):
    error = {name: aligned for name, (_, aligned) in by_photos(people, landmarks=5).items()}
    assert error["1 photo"] < error["mean face"]


def test_the_fit_explains_where_the_landmarks_are(people):
    model = face_model()
    found = landmark_fit.fit(
        model,
        people.landmarks,
        model.landmarks,
        noise=1.0,
        focal=people.focal,
        expression_deviations=model.expression_deviations,
    )
    assert float(found.error.median()) < 1.5, "px, in photos of 512 px"


def test_the_shipped_head_lies_on_a_real_photo_s_face(astronaut):
    """Its five landmarks, which are sums of vertices here, on the detector's."""
    face = detect(astronaut[0])[0]
    model = face_model()
    mesh = face_mesh.from_landmarks(face, model)
    marks = (model.landmarks[:5] @ mesh.in_photo)[:, :2]
    assert (marks - face.landmarks).norm(dim=1).max() < 0.06 * float(face.box[2] - face.box[0])
    nose = mesh.in_photo[mesh.in_photo[:, 2].argmin(), :2]
    assert (nose - face.landmarks[2]).norm() < 0.15 * float(face.box[2] - face.box[0]), "what is nearest to the viewer"
