"""The nodes that make a mesh, in one process with the real host's modules (`scripts/reconstruction.py`)."""

import pytest

from fantasyid_core.reconstruction.mesh_files import write_ply
from fantasyid_lab.dummy_head import head


@pytest.fixture(scope="module")
def found(host_script, tmp_path_factory, standin, portrait) -> dict:
    base = tmp_path_factory.mktemp("host")
    write_ply(base / "head.ply", head().template)
    return host_script("reconstruction.py", base, standin, base / "head.ply", portrait)


@pytest.mark.parametrize("mode", ["as released", "shape only"])
def test_a_face_becomes_a_mesh_and_its_picture(found, mode):
    assert found[mode] == [[642, 3], [1280, 3], [100], [1, 512, 512, 3], [1, 200, 300, 3]]
    assert found[f"{mode}, seen"], "the preview shows the mesh"


def test_deca_and_the_face_model_are_read_once_and_held_by_comfyui(found):
    assert found["comfyui holds deca and flame"] == [True, True]
    assert found["read once"]
    assert found["a changed file is read anew"] == [True, False]
    assert found["after unloading"]


@pytest.mark.parametrize("choice", ["face crop", "landmark fit", "more photos", "more photos, landmark fit"])
def test_every_choice_gives_a_mesh_that_knows_its_place_in_the_photo(found, choice):
    assert found[choice] == [[642, 3], [1, 512, 512, 3], True]


def test_the_landmark_fit_lies_on_the_face(found):
    assert 0.8 < found["as wide as the face"] < 1.8, "the egg's width by the face box's"


def test_a_method_that_there_is_not_is_named(found):
    assert found["no such method"].startswith("MeshError: FantasyID Reconstruct 3D: ")
    assert "DECA, landmark fit" in found["no such method"]


def test_a_turntable_is_a_batch_of_pictures(found):
    assert found["turntable"] == [5, 64, 64, 3]


@pytest.mark.parametrize("ending", ["glb", "obj", "ply"])
def test_a_mesh_is_saved_in_every_format(found, ending):
    name, written = found[ending]
    assert name.startswith("heads/anne_")
    assert name.endswith(f"_.{ending}")
    assert written


def test_the_host_s_own_nodes_take_the_mesh(found):
    assert found["host_mesh"] == [[1, 642, 3], [1, 1280, 3]]
    assert found["host_saved"]


def test_names_never_lead_out_of_the_output_folder(found):
    assert all(answer.startswith("SaveError: FantasyID Save Mesh: ") for answer in found["save_tricks"])
    assert found["written"] == []


def test_every_input_has_a_tooltip(found):
    assert found["missing_tooltips"] == []


def test_a_vertex_file_becomes_a_mesh_of_dots(found):
    assert found["files"] == ["broken.ply", "people/anne.ply"]
    assert found["loaded"] == [[642, 3], [1, 512, 512, 3]]
    assert found["blocked"], "nodes that need triangles are stopped"


def test_a_model_without_deca_and_flame_says_what_to_get(found):
    assert found["bare"].startswith("WeightsMissingError: FantasyID Reconstruct 3D: ")
    assert all(part in found["bare"] for part in ("deca_model.tar", "generic_model.pkl", "flame.is.tue.mpg.de"))


def test_a_damaged_vertex_file_is_named(found):
    assert found["broken"].startswith("MeshError: FantasyID Load Mesh: ")
    assert "broken.ply" in found["broken"]


def test_names_never_lead_out_of_the_input_folder(found):
    assert all(answer.startswith("MeshError: ") for answer in found["tricks"])
