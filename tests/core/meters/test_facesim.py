"""FaceSim of ConsisID and OpenS2V-Eval, against the protocols written down a second time in NumPy and OpenCV."""

import cv2
import numpy as np
import pytest
import torch
from skimage.transform import SimilarityTransform

from fantasyid_core.errors import FaceNotFoundError, ImageError, WeightsError
from fantasyid_core.meters import curricular_face, facesim
from fantasyid_core.meters.curricular_face import CurricularFace
from fantasyid_core.meters.facesim import ARC, CONSISID, CUR, OPENS2V, measure_facesim
from fantasyid_core.meters.facesim_networks import InsightFaceReader

TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
NARROW = {"units": (1, 2, 1, 1), "widths": (4, 6, 8, 8), "embedding": 16}


class DrawnDetector:
    """Finds one face per coloured patch: where a picture is pure red; a patch that touches the edge is none."""

    def prepare(self, ctx_id, input_size):
        assert input_size == (320, 320)

    def detect(self, image):
        red = (image[..., 2] > 200) & (image[..., 0] < 60)
        count, _, boxes, _ = cv2.connectedComponentsWithStats(red.astype(np.uint8))
        found, landmarks = [], []
        for x, y, width, height, _ in boxes[1:count]:
            if x and y and x + width < image.shape[1] and y + height < image.shape[0]:
                found.append([x, y, x + width, y + height, 0.9])
                landmarks.append(TEMPLATE / 112 * (width, height) + (x, y))
        return np.array(found).reshape(-1, 5), np.array(landmarks).reshape(-1, 5, 2)


class DrawnRecogniser:
    """ArcFace's place: a vector of what lies in and around the box."""

    def prepare(self, ctx_id):
        pass

    def get(self, image, face):
        x, y = face.kps.mean(0).round().astype(int)
        around = image[max(y - 40, 0) : y + 40, max(x - 40, 0) : x + 40].astype(np.float64)
        return np.concatenate([around.mean((0, 1)) - 90, around.std((0, 1)) - 40])


def drawn_frames(count, rng, faceless=()):
    frames = rng.integers(0, 256, (count, 90, 120, 3), dtype=np.uint8) // 2
    for i in range(count):
        if i in faceless:
            continue
        side, x, y = 30 + 2 * (i % 5), *rng.integers(5, 40, 2)
        frames[i, y : y + side, x : x + side] = (230, 10, 20)
        frames[i, y + 4 : y + 9, x + 5 : x + 12] = rng.integers(0, 120, 3)
        if i % 3 == 0:
            frames[i, 70:80, 100:110] = (230, 10, 20)  # somebody smaller
    if count > 2:
        frames[2, :40, :40] = (230, 10, 20)  # at the edge: found with grey around it
    return frames


def score_by_hand(frames, photo, network, numbers, drop_zero_cur):
    """Both protocols' arithmetic as their scripts state it, without anything of the pack but the network's layers."""

    def faces_of(bgr):
        boxes, landmarks = DrawnDetector().detect(bgr)
        order = sorted(range(len(boxes)), key=lambda k: (boxes[k][2] - boxes[k][0]) * (boxes[k][3] - boxes[k][1]))
        return landmarks[order[-1]] if order else None

    def vectors(rgb):
        bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
        points = faces_of(bgr)
        seen = bgr
        if points is None:
            high, wide = int(bgr.shape[0] * 0.25), int(bgr.shape[1] * 0.25)
            seen = cv2.copyMakeBorder(bgr, high, high, wide, wide, cv2.BORDER_CONSTANT, value=(128, 128, 128))
            points = faces_of(seen)
            if points is None:
                return None
            arc = DrawnRecogniser().get(seen, type("Face", (), {"kps": points}))
            points = points - (wide, high)
        else:
            arc = DrawnRecogniser().get(seen, type("Face", (), {"kps": points}))
        to_crop = SimilarityTransform()
        to_crop.estimate(points, (TEMPLATE * 2).astype(np.float32))
        crop = cv2.cvtColor(cv2.warpAffine(bgr, to_crop.params[:2], (224, 224), borderValue=0.0), cv2.COLOR_BGR2RGB)
        small = torch.from_numpy(cv2.resize(crop, (112, 112)).transpose(2, 0, 1))[None].float()
        with torch.no_grad():
            cur = network(small.div(255).sub(0.5).div(0.5))[0].numpy()
        return arc, cur / np.linalg.norm(cur)

    def cosine(a, b):
        return max(0.0, float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)))

    own = vectors(photo)
    found = [v for v in (vectors(frames[n]) for n in numbers) if v is not None]
    arcs = [cosine(own[0], v[0]) for v in found]
    curs = [cosine(own[1], v[1]) for v in found]
    curs = [c for c in curs if c != 0.0] if drop_zero_cur else curs
    return np.mean(arcs) if arcs else 0.0, np.mean(curs) if curs else 0.0, len(found) / len(numbers)


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        drawn = CurricularFace(**NARROW)
        for module in drawn.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
        drawn.output_layer[-1].running_mean.normal_(0, 0.1)
        drawn.output_layer[-1].running_var.uniform_(0.001, 0.01)
    return drawn.eval()


@pytest.fixture(scope="module")
def reader(network):
    return InsightFaceReader(DrawnDetector(), DrawnRecogniser(), network)


@pytest.mark.parametrize(
    ("protocol", "numbers", "drop_zero_cur"),
    [
        (CONSISID, [0, 2, 5, 8, 10, 13, 16, 18, 21, 24, 26, 29, 32, 34, 37, 40], False),
        (OPENS2V, [int(i * 40 / 31) for i in range(32)], True),
    ],
    ids=["consisid", "opens2v"],
)
def test_a_protocol_agrees_with_its_arithmetic_written_down_twice(reader, network, protocol, numbers, drop_zero_cur):
    rng = np.random.default_rng(7)
    frames, photo = drawn_frames(41, rng, faceless=(5, 13, 26)), drawn_frames(1, rng)[0]
    assert protocol.frames_of(41) == numbers
    arc, cur, with_face = score_by_hand(frames, photo, network, numbers, drop_zero_cur)
    assert 0.05 < arc < 0.999
    assert 0.05 < cur < 0.999
    assert with_face < 1

    measured = measure_facesim(
        protocol, torch.from_numpy(photo), (torch.from_numpy(frames[n]) for n in numbers), reader
    )

    assert measured.similarity[ARC] == pytest.approx(arc, abs=1e-5)
    assert measured.similarity[CUR] == pytest.approx(cur, abs=1e-5)
    assert measured.with_face == pytest.approx(with_face)


def vectors_of(*cosines):
    """Readings of a photo and of frames with these cosines to it; None: no face."""
    one = torch.tensor([1.0, 0.0])
    turned = [None if c is None else torch.tensor([c, (1 - c * c) ** 0.5]) for c in cosines]
    readings = iter([{ARC: one, CUR: one}, *(None if v is None else {ARC: v, CUR: v} for v in turned)])
    return lambda picture: next(readings)


PICTURE = torch.zeros(8, 8, 3, dtype=torch.uint8)


def test_cosines_are_clipped_and_frames_without_a_face_skipped():
    scored = measure_facesim(CONSISID, PICTURE, [PICTURE] * 4, vectors_of(0.8, None, -0.5, 0.4))
    assert "75% of the frames show a face" in scored.report
    assert scored.similarity == pytest.approx({ARC: 0.4, CUR: 0.4})
    assert scored.with_face == 0.75


def test_opens2v_drops_frames_of_no_similarity_from_cur_alone():
    scored = measure_facesim(OPENS2V, PICTURE, [PICTURE] * 3, vectors_of(0.8, -0.5, 0.4))
    assert scored.similarity == pytest.approx({ARC: 0.4, CUR: 0.6})


def test_a_video_without_a_face_has_similarity_0():
    scored = measure_facesim(CONSISID, PICTURE, [PICTURE] * 2, vectors_of(None, None))
    assert scored.similarity == {ARC: 0.0, CUR: 0.0}
    assert scored.with_face == 0


def test_a_photo_without_a_face_and_a_video_without_frames_are_errors():
    with pytest.raises(FaceNotFoundError, match=r"No face was found in anna\.png"):
        measure_facesim(CONSISID, PICTURE, [PICTURE], lambda picture: None, "anna.png")
    with pytest.raises(ImageError, match="no frames"):
        measure_facesim(CONSISID, PICTURE, [], vectors_of())


def test_grey_is_a_quarter_of_the_picture_on_each_side():
    padded = facesim.pad(torch.ones(10, 21, 3, dtype=torch.uint8))
    assert padded.shape == (14, 31, 3)
    assert (padded[:2] == 128).all()
    assert (padded[:, :5] == 128).all()
    assert (padded[2:12, 5:26] == 1).all()


def test_the_network_has_the_published_one_s_names_and_size():
    with torch.device("meta"):
        whole = CurricularFace()
    names = set(whole.state_dict())
    assert sum(parameter.numel() for parameter in whole.parameters()) == 65_150_912
    assert {"input_layer.2.weight", "body.0.res_layer.4.weight", "body.48.res_layer.5.running_var"} <= names
    assert "body.3.shortcut_layer.0.weight" in names
    assert "body.0.shortcut_layer.0.weight" not in names
    assert "output_layer.4.running_mean" in names
    assert "output_layer.4.weight" not in names


def test_the_network_is_read_from_a_file_of_its_own_alone(network, tmp_path, monkeypatch):
    monkeypatch.setattr(curricular_face, "UNITS", NARROW["units"])
    monkeypatch.setattr(curricular_face, "WIDTHS", NARROW["widths"])
    monkeypatch.setattr(curricular_face, "EMBEDDING", NARROW["embedding"])
    path = tmp_path / f"{curricular_face.FILE}.bin"
    torch.save({k: v for k, v in network.state_dict().items() if "num_batches" not in k}, path)  # as old files have it
    faces = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(curricular_face.load(path).embed(faces), network.embed(faces))
    torch.save({"input_layer.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(WeightsError, match="CurricularFace IR-101"):
        curricular_face.load(path)
