"""Shape, expression, pose and camera from landmarks, in one photo and in several, on faces whose truth is known."""

import time
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from fantasyid_core.detection import head_pose
from fantasyid_core.detection.faces import detect
from fantasyid_core.errors import MeshError
from fantasyid_core.fusion import mesh_hierarchy
from fantasyid_core.reconstruction import face_mesh, flame, landmark_fit

POINTS = 40


@pytest.fixture(scope="module")
def model() -> SimpleNamespace:
    """Forty points of a head, 12 × 14 × 8 cm, with 20 smooth ways to differ by millimetres and 8 to move."""
    draw = torch.Generator().manual_seed(1)
    template = torch.randn(POINTS, 3, generator=draw) * torch.tensor([0.03, 0.035, 0.02])
    shape = torch.randn(POINTS, 3, 20, generator=draw) * 0.002
    return SimpleNamespace(
        template=template, shape_basis=shape, expression_basis=torch.randn(POINTS, 3, 8, generator=draw) * 0.001
    )


def truth(
    model: SimpleNamespace, people: int, photos: int, *, seed: int = 0, focal: float = 0.0
) -> tuple[landmark_fit.Fit, torch.Tensor]:
    """People seen in photos from all sides at about 1000 px per metre, and their exact landmarks."""
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(people, photos, *shape, generator=draw)

    turns = head_pose.rotation(*(random(3) * torch.tensor([30.0, 10, 15])).unbind(-1))
    shape, expression = torch.randn(people, 20, generator=draw), random(8)
    scale, shift = 1000 * (0.2 * random()).exp(), 300 + 50 * random(2)
    bend = torch.full((people, photos), 1 / focal if focal else 0.0)
    fit = landmark_fit.Fit(shape, expression, turns, scale, shift, bend, torch.zeros(people, photos))
    return fit, fit.in_photo(heads(model, fit))[..., :2]


def heads(model: SimpleNamespace, fit: landmark_fit.Fit) -> torch.Tensor:
    rest = model.template + torch.einsum("vxs,ps->pvx", model.shape_basis, fit.shape)[:, None]
    return rest + torch.einsum("vxe,pne->pnvx", model.expression_basis, fit.expression)


def millimetres(model: SimpleNamespace, shape: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Mean distance (P,) of the neutral faces' points."""
    return 1000 * torch.einsum("vxs,ps->pvx", model.shape_basis, shape - true).norm(dim=-1).mean(-1)


@pytest.mark.parametrize("focal", [0.0, 700.0])
def test_exact_landmarks_give_the_truth_back(model, focal):
    true, landmarks = truth(model, people=4, photos=3, focal=focal)
    found = landmark_fit.fit(model, landmarks, torch.arange(POINTS), noise=0.1, focal=focal or None)
    assert (found.error < 0.2).all(), "px"
    assert (millimetres(model, found.shape, true.shape) < 0.2).all()
    assert torch.allclose(found.rotation, true.rotation, atol=0.01)
    assert torch.allclose(found.scale, true.scale, rtol=0.01)
    assert torch.allclose(found.in_photo(heads(model, found))[..., :2], landmarks, atol=1)


def test_more_photos_of_a_person_tell_more_of_the_shape(model):
    true, landmarks = truth(model, people=16, photos=8)
    noisy = landmarks + 3 * torch.randn(landmarks.shape, generator=torch.Generator().manual_seed(5))
    errors = []
    for photos in (1, 2, 4, 8):
        found = landmark_fit.fit(model, noisy[:, :photos], torch.arange(POINTS), noise=3.0)
        errors.append(float(millimetres(model, found.shape, true.shape).mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.6 * errors[0]
    alone = landmark_fit.fit(model, noisy.reshape(-1, 1, POINTS, 2), torch.arange(POINTS), noise=3.0).shape
    alone = alone.reshape(16, 8, -1)
    by_photo = torch.stack([millimetres(model, alone[:, i], true.shape) for i in range(8)])
    assert errors[-1] < float(by_photo.amin(0).mean()), "better than the best of the single photos, chosen by the truth"
    assert errors[-1] < float(millimetres(model, alone.mean(1), true.shape).mean()), "and than their plain mean"


def test_photos_and_landmarks_without_confidence_do_not_count(model):
    _, landmarks = truth(model, people=2, photos=2)
    damaged = landmarks.clone()
    damaged[:, 0] += 40 * torch.randn(damaged[:, 0].shape, generator=torch.Generator().manual_seed(2))
    damaged[:, 1, :5] += 100
    confidence = torch.ones(2, 2, POINTS)
    confidence[:, 0], confidence[:, 1, :5] = 0, 0
    careful = landmark_fit.fit(model, damaged, torch.arange(POINTS), noise=0.5, confidence=confidence)
    clean = landmark_fit.fit(model, landmarks[:, 1:, 5:], torch.arange(5, POINTS), noise=0.5)
    assert torch.allclose(careful.shape, clean.shape, atol=0.01)


def test_people_are_solved_independently_of_each_other(model):
    _, landmarks = truth(model, people=3, photos=2)
    together = landmark_fit.fit(model, landmarks, torch.arange(POINTS))
    alone = landmark_fit.fit(model, landmarks[1:2], torch.arange(POINTS))
    assert torch.allclose(together.shape[1:2], alone.shape, atol=1e-4)
    assert torch.allclose(together.scale[1:2], alone.scale, rtol=1e-4)


@pytest.mark.parametrize("roll", [-170.0, -90, 45, 180])
def test_a_photo_on_its_side_or_upside_down_is_no_trouble(model, roll):
    rotation = head_pose.rotation(*torch.tensor([20.0, 5, roll])[:, None])[None]
    nothing = torch.zeros(1, 1, 8)
    true = landmark_fit.Fit(
        torch.zeros(1, 20), nothing, rotation, torch.full((1, 1), 900.0), torch.zeros(1, 1, 2), torch.zeros(1, 1), None
    )
    landmarks = true.in_photo(heads(model, true))[..., :2]
    assert torch.allclose(landmark_fit.fit(model, landmarks, torch.arange(POINTS)).rotation, rotation, atol=1e-3)


@pytest.mark.alone
def test_one_photo_takes_well_under_five_seconds(model):
    """With as many components as DECA has and 68 landmarks; docs/reconstruction.md has the numbers."""
    draw = torch.Generator().manual_seed(0)
    large = SimpleNamespace(
        template=torch.randn(68, 3, generator=draw) * 0.04,
        shape_basis=torch.randn(68, 3, 100, generator=draw) * 0.002,
        expression_basis=torch.randn(68, 3, 50, generator=draw) * 0.001,
    )
    landmarks = 900 * large.template[None, None, :, :2] + 300
    start = time.monotonic()
    landmark_fit.fit(large, landmarks, torch.arange(68))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("focal", [0.0, 700.0])
def test_depths_are_used_where_landmarks_have_them(model, focal):
    """They begin anywhere, and bring the truth nearer where there is noise in the picture."""
    true, landmarks = truth(model, people=4, photos=2, focal=focal)
    depth = true.in_photo(heads(model, true))[..., 2:] + 77
    noisy = landmarks + 8 * torch.randn(landmarks.shape, generator=torch.Generator().manual_seed(3))

    def error(marks: torch.Tensor, noise: float) -> torch.Tensor:
        found = landmark_fit.fit(model, marks, torch.arange(POINTS), noise=noise, focal=focal or None, depth_noise=0.1)
        return millimetres(model, found.shape, true.shape).mean()

    assert error(torch.cat([landmarks, depth], -1), 0.1) < 0.05
    assert error(torch.cat([noisy, depth], -1), 8.0) < 0.5 * error(noisy, 8.0)


def test_what_the_head_hides_and_what_lies_far_off_hardly_counts(model):
    """Of a face some 60 px large what is turned away lies 12 px off, and so does every twentieth landmark."""
    true, landmarks = truth(model, people=4, photos=3)
    draw = torch.Generator().manual_seed(4)
    normals = torch.nn.functional.normalize(model.template * torch.tensor([0.3, 0.3, 1.0]), dim=-1)
    facing = (normals @ true.rotation.mT)[..., 2]
    wrong = landmarks + 12 * torch.randn(landmarks.shape, generator=draw)
    spoilt = (facing < 0) | (torch.rand(facing.shape, generator=draw) < 0.05)
    marks = torch.where(spoilt[..., None], wrong, landmarks)

    def error(normals: torch.Tensor | None) -> torch.Tensor:
        found = landmark_fit.fit(model, marks, torch.arange(POINTS), noise=2.0, normals=normals, iterations=30)
        return millimetres(model, found.shape, true.shape).mean()

    assert error(normals) < 0.6 * error(None)


@pytest.mark.parametrize(
    ("landmarks", "points", "message"),
    [
        (torch.rand(1, 1, 5, 4), 5, r"expected \(people, photos, 5, 2 or 3\)"),
        (torch.rand(1, 1, 2, 2), 2, "at least three"),
        (torch.rand(1, 0, 5, 2), 5, "expected"),
        (torch.full((1, 1, 5, 2), torch.nan), 5, "not finite"),
        (torch.ones(1, 1, 5, 2), 5, "in one place"),
    ],
)
def test_landmarks_that_no_face_fits_are_refused(model, landmarks, points, message):
    with pytest.raises(MeshError, match=message):
        landmark_fit.fit(model, landmarks, torch.arange(points))


def test_flame_s_five_landmarks_follow_from_the_geometry_of_its_mesh(flame_dir):
    """Eyes: the foremost vertex of each eyeball. Nose: of the head. Mouth: the ends of the gap between the lips."""
    mesh = mesh_hierarchy.load(flame_dir / "transform.pkl")
    vertices, faces = mesh.template, mesh.faces[0].tolist()
    head, *eyeballs = sorted(components(edges(faces)), key=len, reverse=True)
    assert [len(eyeball) for eyeball in eyeballs] == [546, 546]

    def extreme(part: set[int], axis: int, sign: int) -> int:
        return max(part, key=lambda vertex: sign * float(vertices[vertex, axis]))

    right, left = sorted(eyeballs, key=lambda eyeball: float(vertices[list(eyeball), 0].mean()))
    border = [edge for edge, count in edges(faces).items() if count == 1]
    mouth = max(components(border), key=lambda loop: float(vertices[list(loop), 2].mean()))
    found = (
        extreme(right, 2, 1),
        extreme(left, 2, 1),
        extreme(head, 2, 1),
        extreme(mouth, 0, -1),
        extreme(mouth, 0, 1),
    )
    assert found == flame.LANDMARKS


def edges(faces: list[list[int]]) -> dict[tuple[int, int], int]:
    """Undirected edges, and how many faces have each."""
    count: dict[tuple[int, int], int] = defaultdict(int)
    for a, b, c in faces:
        for edge in ((a, b), (b, c), (c, a)):
            count[min(edge), max(edge)] += 1
    return count


def components(links) -> list[set[int]]:
    """Sets of vertices that links connect."""
    neighbours: dict[int, list[int]] = defaultdict(list)
    for a, b in links:
        neighbours[a].append(b)
        neighbours[b].append(a)
    found, visited = [], set()
    for start in neighbours:
        if start in visited:
            continue
        part, todo = {start}, [start]
        while todo:
            new = set(neighbours[todo.pop()]) - part
            part |= new
            todo += new
        visited |= part
        found.append(part)
    return found


@pytest.mark.parametrize("mode", face_mesh.MODES)
def test_a_mesh_from_landmarks_lies_on_the_photo_s_face(standin, astronaut, mode):
    model = flame.load(standin / "face_model" / "generic_model.safetensors")
    face = detect(astronaut[0])[0]
    mesh = face_mesh.from_landmarks(face, model, mode)
    distance = (mesh.in_photo[model.landmarks, :2] - face.landmarks).norm(dim=1)
    assert distance.max() < 0.15 * float(face.box[2] - face.box[0])
    assert mesh.vertices.shape == model.template.shape
    neutral = model.decode(mesh.shape_code[None])[0]
    assert torch.equal(mesh.vertices, neutral) == (mode == face_mesh.SHAPE_ONLY)


def test_further_photos_of_a_person_change_the_shape_and_not_whose_pose_it_is(standin, astronaut):
    model = flame.load(standin / "face_model" / "generic_model.safetensors")
    face, mirrored = detect(astronaut[0])[0], detect(astronaut[0].flip(1))[0]
    alone = face_mesh.from_landmarks(face, model)
    both = face_mesh.from_landmarks(face, model, others=[mirrored])
    assert not torch.allclose(alone.shape_code, both.shape_code, atol=1e-3)
    assert (alone.in_photo[:, :2].mean(0) - both.in_photo[:, :2].mean(0)).norm() < 10


def test_a_face_model_without_landmarks_says_so(standin, astronaut):
    model = flame.load(standin / "face_model" / "generic_model.safetensors")
    bare = flame.Flame(**{**vars(model), "landmarks": None})
    with pytest.raises(MeshError, match=r"642 vertices are eyes, nose and mouth: use FLAME"):
        face_mesh.from_landmarks(detect(astronaut[0])[0], bare)


def test_photos_without_a_face_are_skipped_and_counted(astronaut, caplog):
    photos = torch.cat([torch.zeros_like(astronaut), astronaut, torch.ones_like(astronaut)])
    with caplog.at_level("INFO"):
        faces = face_mesh.largest_faces(photos)
    assert len(faces) == 1
    assert "no usable face in 2 of 3 photos" in caplog.text
