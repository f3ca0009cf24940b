"""Meshes from files: units and axes of other programs are set right and said; another topology is refused."""

from pathlib import Path

import pytest
import torch

from fantasyid_core.errors import MeshError
from fantasyid_core.fusion.mesh_hierarchy import load as load_topology
from fantasyid_core.reconstruction.face_mesh import FaceMesh, from_file
from fantasyid_core.reconstruction.flame import Flame, load
from fantasyid_core.reconstruction.mesh_space import into_space
from tools.environment import ROOT

MODEL = ROOT / "models" / "FantasyID-nano" / "face_model" / "generic_model.safetensors"


@pytest.fixture(scope="module")
def model() -> Flame:
    return load(MODEL)


@pytest.fixture(scope="module")
def person(model: Flame) -> torch.Tensor:
    """(V, 3) one person's face."""
    return model.decode(torch.randn(1, 50, generator=torch.Generator().manual_seed(0)))[0]


def blender(vertices: torch.Tensor) -> torch.Tensor:
    """z up, y into the picture."""
    x, y, z = vertices.unbind(1)
    return torch.stack([x, -z, y], 1)


OTHERS = {
    "millimetres": (lambda v: v * 1000, "it is in millimetres"),
    "centimetres": (lambda v: v * 100, "it is in centimetres"),
    "inches": (lambda v: v / 0.0254, "it is in inches"),
    "Blender": (blender, "its axes are those of another program"),
    "Blender, millimetres": (lambda v: blender(v) * 1000, "it is in millimetres and its axes are"),
    "left-handed": (lambda v: v * torch.tensor([1.0, 1.0, -1.0]), "its axes are those of another program"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_units_and_axes_are_set_right_and_said(name: str, model: Flame, person: torch.Tensor):
    change, fragment = OTHERS[name]
    mesh, message = into_space(FaceMesh(change(person)), model.template)
    torch.testing.assert_close(mesh.vertices, person, atol=1e-6, rtol=1e-6)
    assert fragment in message


def test_a_mesh_of_no_known_unit_gets_a_head_s_size(model: Flame, person: torch.Tensor):
    mesh, message = into_space(FaceMesh(person * 7.7), model.template)
    size, right = (float((x - x.mean(0)).norm()) for x in (mesh.vertices, model.template))
    assert size == pytest.approx(right, rel=1e-3)
    assert "times as large as a head" in message


@pytest.mark.parametrize("yaw", [0.0, 0.4, 0.8])
def test_people_expressions_and_poses_stay_as_they_are(yaw: float, model: Flame):
    """A head that is turned by up to 45° is a pose, not other axes; a large head is not another unit."""
    generator = torch.Generator().manual_seed(1)
    expression = torch.randn(1, 50, generator=generator) * model.expression_deviations
    pose = torch.tensor([[0.1, yaw, 0.1, 0.1, 0.0, 0.0]])
    mesh = FaceMesh(model.decode(2 * torch.randn(1, 50, generator=generator), expression, pose)[0])
    assert into_space(mesh, model.template) == (mesh, "")


@pytest.mark.parametrize("other", ["another order", "a heap", "one point"])
def test_another_topology_with_the_same_count_is_refused_with_a_cure(other: str, model: Flame, person: torch.Tensor):
    generator = torch.Generator().manual_seed(0)
    vertices = {
        "another order": person[torch.randperm(len(person), generator=generator)],
        "a heap": torch.randn(person.shape, generator=generator),
        "one point": torch.zeros_like(person),
    }[other]
    with pytest.raises(MeshError, match=r"they are not those of the model's face.*Use the mesh as"):
        into_space(FaceMesh(vertices), model.template)


def test_what_was_reconstructed_here_is_not_looked_at(model: Flame, person: torch.Tensor):
    mesh = FaceMesh(person * 1000, shape_code=torch.zeros(100))
    assert into_space(mesh, model.template) == (mesh, "")


def test_the_release_s_vertex_file_is_right_and_in_other_units_and_axes_set_right(flame_dir: Path):
    template = load_topology(flame_dir / "transform.pkl").template
    mesh = from_file(flame_dir / "anne.ply", 5023)
    assert into_space(mesh, template) == (mesh, "")
    for change, fragment in OTHERS.values():
        found, message = into_space(FaceMesh(change(mesh.vertices)), template)
        torch.testing.assert_close(found.vertices, mesh.vertices, atol=1e-5, rtol=1e-5)
        assert fragment in message
