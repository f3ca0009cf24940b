"""Photo → mesh: DECA's regressor and FLAME's decoder give the release's numbers and refuse what is not theirs."""

import dataclasses
import hashlib
import importlib.util
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fantasyid_core.detection.faces import DetectedFace, detect
from fantasyid_core.errors import MeshError, WeightsError, WeightsMissingError
from fantasyid_core.images import load_photo
from fantasyid_core.reconstruction import deca, deca_input, face_mesh, flame, known_files
from fantasyid_core.reconstruction.mesh_files import write_ply

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def recipe(parity_dir):
    spec = importlib.util.spec_from_file_location("recipe", parity_dir / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def flame_pickle(recipe, sphere, tmp_path_factory):
    """A stand-in for generic_model.pkl as FLAME ships it: Python 2's pickle with chumpy and SciPy objects in it."""
    pytest.importorskip("scipy.sparse")
    vertices, faces = sphere(50)  # 5,100: another mesh than FLAME's, whose licence keeps it out of the repository
    path = tmp_path_factory.mktemp("flame") / "generic_model.pkl"
    recipe.write_flame_pickle(path, vertices.numpy(), faces.numpy())
    return path


@pytest.fixture(scope="module")
def model(standin) -> flame.Flame:
    return flame.load(standin / "face_model" / "generic_model.safetensors")


@pytest.fixture(scope="module")
def regressor(standin) -> deca.Regressor:
    return deca.load_regressor(standin / "face_model" / "deca_model.safetensors")


def face_of(photo: torch.Tensor) -> DetectedFace:
    nothing = torch.zeros(1)
    return DetectedFace(photo, nothing, nothing, 1.0, nothing, nothing)


def relative(ours, theirs) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def rodrigues(turn: np.ndarray) -> np.ndarray:
    """Rotation matrix of an axis times an angle."""
    angle = np.linalg.norm(turn)
    if not angle:
        return np.eye(3)
    x, y, z = turn / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * np.outer((x, y, z), (x, y, z))


def skinned(arrays: dict, shape: np.ndarray, expression: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """FLAME by its paper (Li et al. 2017, equations 1 to 6) in float64, joint by joint; turns (5, 3) radians."""
    basis, parents = arrays["shapedirs"], [None, 0, 1, 1, 1]
    rest = (
        arrays["v_template"] + basis[..., : len(shape)] @ shape + basis[..., 300 : 300 + len(expression)] @ expression
    )
    joints = arrays["J_regressor"] @ rest
    rotations = [rodrigues(turn) for turn in turns]
    correctives = np.concatenate([(rotation - np.eye(3)).ravel() for rotation in rotations[1:]])
    rest = rest + arrays["posedirs"] @ correctives
    world: list[np.ndarray] = []
    for joint, parent in enumerate(parents):
        local = np.eye(4)
        local[:3, :3] = rotations[joint]
        local[:3, 3] = joints[joint] - (0 if parent is None else joints[parent])
        world.append(local if parent is None else world[parent] @ local)
    moved = np.zeros_like(rest)
    for joint, matrix in enumerate(world):
        moved += arrays["weights"][:, joint, None] * ((rest - joints[joint]) @ matrix[:3, :3].T + matrix[:3, 3])
    return moved


def test_flame_decodes_by_its_paper_s_equations(recipe, sphere, flame_pickle):
    """On a drawn template: what FLAME's own gives, compared with the release, needs `FANTASYID_PARITY`."""
    vertices, faces = sphere(50)
    arrays = recipe.flame_arrays(vertices.numpy(), faces.numpy())
    code = recipe.draw("deca:code", (1, 236))
    shape, expression, pose = code[0, :100], code[0, 150:200], 0.2 * code[0, 200:206]
    turns = np.zeros((5, 3))
    turns[0], turns[2] = pose[:3], pose[3:]
    expected = torch.from_numpy(skinned(arrays, shape, expression, turns)).float()
    found = flame.load(flame_pickle).decode(*(torch.from_numpy(x)[None] for x in (shape, expression, pose)))[0]
    assert relative(found, expected) < 1e-6
    assert relative(found, torch.from_numpy(arrays["v_template"]).float()) > 1e-2, "it moves"


def test_the_regressor_codes_a_drawn_image_as_the_release_does(parity_dir, recipe):
    theirs = load_file(parity_dir / "deca_outputs.safetensors")
    shapes = json.loads((parity_dir / "deca_encoder_manifest.json").read_text())
    state = {name: torch.from_numpy(np.asarray(recipe.fill_value(name, shape))) for name, shape in shapes.items()}
    network = deca.Regressor.from_state_dict(state)
    image = torch.from_numpy(recipe.draw("deca:image", (2, 3, 224, 224))).sigmoid()
    assert relative(network(image), theirs["encoder_code_for_draw_image"]) < TOLERANCE


@pytest.mark.parametrize("size", [(904, 864), (100, 3000), (224, 224), (17, 40), (1001, 223)])
def test_squeezing_is_pillow_s_resize_but_for_one_step_of_rounding(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    theirs = torch.from_numpy(np.array(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BILINEAR)))
    ours = deca_input.squeeze(torch.from_numpy(pixels).float() / 255)[0].movedim(0, -1) * 255
    difference = (ours - theirs).abs()
    assert difference.max() < 1.01
    assert difference.mean() < 0.3


def test_the_code_is_split_in_deca_s_order():
    code = deca.split(torch.arange(236.0)[None])
    firsts = [
        float(getattr(code, name)[0, 0]) for name in ("shape", "texture", "expression", "pose", "camera", "light")
    ]
    assert firsts == [0, 100, 150, 200, 206, 209]
    assert code.light.shape == (1, 27)


def test_a_turned_head_is_the_resting_head_turned_around_its_root(model):
    """With the jaw closed, FLAME's other joints follow the root rigidly."""
    shape = torch.randn(1, 100)
    rest, turned = (model.decode(shape, pose=torch.tensor([[0.0, yaw, 0, 0, 0, 0]]))[0] for yaw in (0.0, 0.7))
    rotation = flame.axis_angle_to_matrix(torch.tensor([0.0, 0.7, 0]))
    root = model.joint_regressor[0] @ rest
    assert torch.allclose(turned, (rest - root) @ rotation.T + root, atol=1e-6)


def test_the_jaw_moves_what_it_is_skinned_to(model):
    shape = torch.zeros(1, 100)
    closed, opened = (model.decode(shape, pose=torch.tensor([[0, 0, 0, jaw, 0, 0]]))[0] for jaw in (0.0, 0.3))
    moved = (opened - closed).norm(dim=1)
    by_jaw = model.weights[:, flame.JAW]
    assert moved[by_jaw.argmax()] > 5 * moved[by_jaw.argmin()] > 0


def test_pose_zero_and_no_expression_are_the_neutral_face(model):
    shape = torch.randn(2, 50)
    neutral = model.decode(shape)
    assert torch.allclose(model.decode(shape, torch.zeros(2, 50), torch.zeros(2, 6)), neutral, atol=1e-6)
    assert not torch.allclose(model.decode(shape, torch.ones(2, 50)), neutral, atol=1e-6)


def test_rotations_are_rotations_and_rest_at_zero():
    axis = torch.tensor([[0.0, 0, 0], [1e-6, 0, 0], [0, 0, torch.pi / 2], [3, -2, 1]])
    matrices = flame.axis_angle_to_matrix(axis)
    assert torch.equal(matrices[0], torch.eye(3))
    assert torch.allclose(matrices @ matrices.mT, torch.eye(3).expand(4, 3, 3), atol=1e-6)
    assert torch.allclose(matrices[2] @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6)


def test_a_code_longer_than_the_model_is_refused(model):
    with pytest.raises(MeshError, match="301 components"):
        model.decode(torch.zeros(1, 301))


def test_reconstruction_in_both_modes(regressor, model, astronaut):
    face = face_of(astronaut[0])
    released = face_mesh.reconstruct(face, regressor, model)
    neutral = face_mesh.reconstruct(face, regressor, model, "shape only")
    code = deca.split(regressor(deca_input.squeeze(astronaut[0])))
    assert torch.equal(neutral.vertices, model.decode(code.shape)[0])
    assert torch.equal(released.vertices, model.decode(code.shape, code.expression, code.pose)[0])
    assert torch.equal(neutral.shape_code, code.shape[0])
    assert neutral.faces is model.faces
    assert not torch.equal(released.vertices, neutral.vertices)
    with pytest.raises(MeshError, match="as released, shape only"):
        face_mesh.reconstruct(face, regressor, model, "magic")


def test_several_photos_give_one_shape_weighted_by_the_faces_quality(regressor, model, astronaut, monkeypatch):
    sharp = detect(astronaut[0])[0]
    blurred = dataclasses.replace(sharp, image=astronaut[0].flip(1), sharpness=sharp.sharpness / 4)
    monkeypatch.setattr(face_mesh, "_BATCH", 1)
    both = face_mesh.reconstruct(sharp, regressor, model, others=[blurred])
    codes = [face_mesh.reconstruct(face, regressor, model).shape_code for face in (sharp, blurred)]
    assert torch.allclose(both.shape_code, 0.8 * codes[0] + 0.2 * codes[1], atol=1e-6)
    code = deca.split(regressor(deca_input.squeeze(sharp.image)))
    expected = model.decode(both.shape_code[None], code.expression, code.pose)[0]
    assert torch.allclose(both.vertices, expected, atol=1e-6), "expression and pose stay the first photo's"


def test_as_released_reproduces_the_authors_mesh_of_anne(flame_dir):
    """Needs the artist's own licensed files; wired and ready for whoever has them."""
    folder = os.environ.get("FANTASYID_FACE_MODEL")
    if not folder:
        pytest.skip("FANTASYID_FACE_MODEL names no folder with deca_model.tar and generic_model.pkl")
    deca_file, flame_file = face_mesh.find_files(Path(folder))
    face = face_of(load_photo(flame_dir / "anne.jpg"))
    found = face_mesh.reconstruct(face, deca.load_regressor(deca_file), flame.load(flame_file))
    theirs = face_mesh.from_file(flame_dir / "anne.ply", 5023).vertices
    assert (found.vertices - theirs).norm(dim=1).mean() < 1e-3, "metres"


def test_the_published_checkpoint_s_prefix_and_other_networks_are_dealt_with(regressor, tmp_path):
    published = {"E_flame": regressor.state_dict(), "E_detail": {"x": torch.ones(1)}, "D_detail": {"y": torch.ones(1)}}
    torch.save(published, tmp_path / "deca_model.tar")
    image = torch.rand(1, 3, 224, 224)
    assert torch.equal(deca.load_regressor(tmp_path / "deca_model.tar")(image), regressor(image))


@pytest.mark.parametrize("lost", ["encoder.conv1.weight", "encoder.layer2.0.conv2.weight", "layers.0.weight", "layers"])
def test_weights_of_another_network_are_refused(regressor, lost):
    state = {name: tensor for name, tensor in regressor.state_dict().items() if not name.startswith(lost)}
    with pytest.raises(WeightsError, match=r"not of (DECA's|this DECA) regressor"):
        deca.Regressor.from_state_dict(state)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("v_template", lambda x: x * torch.nan),
        ("v_template", lambda x: x[0, 0]),
        ("f", lambda x: x + 1),
        ("f", lambda x: x - 1),
        ("f", lambda x: x.float()[..., :2]),
        ("shapedirs", lambda x: x[1:]),
        ("posedirs", lambda x: x[..., 1:]),
        ("J_regressor", lambda x: x.T),
        ("weights", lambda x: x / 0),
        ("kintree_table", lambda x: x + 5),
        ("kintree_table", lambda x: x[:, :2]),
        ("kintree_table", lambda x: x[0]),
        ("kintree_table", lambda x: x[:0]),
    ],
)
def test_a_damaged_face_model_is_refused(standin, tmp_path, name, change):
    tensors = load_file(standin / "face_model" / "generic_model.safetensors")
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, tmp_path / "generic_model.safetensors")
    with pytest.raises(WeightsError, match=r"generic_model\.safetensors"):
        flame.load(tmp_path / "generic_model.safetensors")


def test_a_face_model_that_is_none_is_refused(tmp_path):
    path = tmp_path / "generic_model.pkl"
    for content in ({}, {"f": 1}, [1], "text"):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(WeightsError, match="lacks"):
            flame.load(path)
    save_file({"x": torch.ones(1)}, tmp_path / "generic_model.safetensors")
    with pytest.raises(WeightsError, match="expected the tensors"):
        flame.load(tmp_path / "generic_model.safetensors")


def test_missing_files_are_named_with_their_place_source_and_licence(tmp_path, standin):
    with pytest.raises(WeightsMissingError) as caught:
        face_mesh.find_files(tmp_path / "a", tmp_path / "b")
    message = str(caught.value)
    for part in ("a/deca_model.tar", "b/generic_model.pkl", "flame.is.tue.mpg.de", "DECA", "non-commercial", ".ply"):
        assert part in message.replace("\\", "/")
    (tmp_path / "deca_model.tar").touch()
    with pytest.raises(WeightsMissingError, match=r"^Copy generic_model\.pkl into") as caught:
        face_mesh.find_files(tmp_path)
    found = face_mesh.find_files(tmp_path, standin / "face_model")
    assert [path.name for path in found] == ["deca_model.tar", "generic_model.safetensors"]


def test_a_mesh_file_of_another_topology_is_refused(tmp_path, model):
    write_ply(tmp_path / "face.ply", model.template, model.faces)
    mesh = face_mesh.from_file(tmp_path / "face.ply", len(model.template))
    assert torch.equal(mesh.vertices, model.template)
    assert torch.equal(mesh.faces, model.faces)
    assert mesh.shape_code is None
    with pytest.raises(MeshError, match=r"642 vertices, expected 5023"):
        face_mesh.from_file(tmp_path / "face.ply", 5023)


def test_the_artist_s_files_are_told_by_their_hash_once(tmp_path, caplog, monkeypatch):
    file = tmp_path / "deca_model.tar"
    file.write_bytes(b"anything")
    digest = hashlib.sha256(b"anything").hexdigest()
    with caplog.at_level("INFO"):
        assert known_files.check(file) is None
        assert known_files.check(file) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"FantasyID: deca_model.tar is not a file known by its hash; SHA-256 {digest}."
    ]
    caplog.clear()
    file.write_bytes(b"the real thing")
    monkeypatch.setitem(known_files.KNOWN, hashlib.sha256(b"the real thing").hexdigest(), "DECA's, as published")
    with caplog.at_level("INFO"):
        assert known_files.check(file) == "DECA's, as published", "changed, so looked at again"
    assert "deca_model.tar is DECA's, as published." in caplog.text


def test_a_face_model_s_pickle_is_looked_up_when_it_is_read(flame_pickle, caplog):
    known_files._check.cache_clear()
    with caplog.at_level("INFO"):
        flame.load(flame_pickle)
    assert "generic_model.pkl is not a file known by its hash; SHA-256 " in caplog.text


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("landmarks", lambda v: torch.tensor([0, 1, 2, 3])),
        ("landmarks", lambda v: torch.tensor([0, 1, 2, 3, v])),
        ("landmarks", lambda v: torch.tensor([0, 1, 2, 3, -1])),
        ("landmarks", lambda v: torch.rand(5, v - 1)),
        ("landmarks", lambda v: torch.full((5, v), torch.nan)),
        ("landmarks", lambda v: torch.tensor(7)),
        ("landmarks", lambda v: torch.rand(5)),
        ("expressiondirs", lambda v: torch.rand(v, 2, 4)),
        ("expressiondirs", lambda v: torch.tensor(1.0)),
        ("expressiondirs", lambda v: torch.full((v, 3, 4), torch.inf)),
        ("expressiondeviations", lambda v: torch.rand(3)),
        ("expressiondeviations", lambda v: torch.full((100,), torch.nan)),
    ],
)
def test_damaged_extras_of_a_face_model_are_refused(standin, tmp_path, name, change):
    tensors = load_file(standin / "face_model" / "generic_model.safetensors")
    tensors[name] = change(len(tensors["v_template"]))
    save_file(tensors, tmp_path / "generic_model.safetensors")
    with pytest.raises(WeightsError, match=r"generic_model\.safetensors"):
        flame.load(tmp_path / "generic_model.safetensors")


def test_a_face_model_may_count_its_shapes_and_mark_its_landmarks_as_it_likes(standin, tmp_path):
    """Topologies are data: bases of any size, landmarks as vertices or as sums of them."""
    tensors = load_file(standin / "face_model" / "generic_model.safetensors")
    vertices = len(tensors["v_template"])
    tensors["shapedirs"] = tensors["shapedirs"][..., :12].contiguous()
    tensors["expressiondirs"] = torch.rand(vertices, 3, 4)
    tensors["landmarks"] = torch.rand(7, vertices)
    save_file(tensors, tmp_path / "generic_model.safetensors")
    model = flame.load(tmp_path / "generic_model.safetensors")
    assert (model.shape_basis.shape[2], model.expression_basis.shape[2]) == (12, 4)
    assert model.landmarks.shape == (7, vertices)
