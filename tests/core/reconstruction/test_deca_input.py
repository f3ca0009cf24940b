"""What DECA looks at: the release's squeezed photo or DECA's own face crop, and the way back into the photo."""

import numpy as np
import pytest
import torch

from fantasyid_core.detection.faces import DetectedFace, detect
from fantasyid_core.errors import MeshError
from fantasyid_core.reconstruction import deca, deca_input, face_mesh, flame


def face_in(photo: torch.Tensor, box: tuple[float, ...] = (0.0, 0.0, 1.0, 1.0)) -> DetectedFace:
    nothing = torch.zeros(1)
    return DetectedFace(photo, torch.tensor(box), nothing, 1.0, nothing, nothing)


def ramp(height: int, width: int) -> torch.Tensor:
    """A photo whose red is the column and whose green is the row, both as a share of 1000."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y, torch.zeros_like(x)], -1) / 1000


@pytest.mark.parametrize("framing", deca_input.FRAMINGS)
@pytest.mark.parametrize(("height", "width"), [(500, 900), (301, 224), (60, 80)])
def test_to_photo_says_which_pixel_of_the_photo_a_pixel_of_the_input_shows(framing, height, width):
    box = (0.4 * width, 0.3 * height, 0.6 * width, 0.6 * height)
    prepared = deca_input.prepare(face_in(ramp(height, width), box), framing)
    assert prepared.image.shape == (1, 3, deca.SIZE, deca.SIZE)
    pixel = torch.tensor([[30.0, 60, 0], [111, 111, 0], [200, 150, 0]])
    shown = 1000 * prepared.image[0, :2, pixel[:, 1].long(), pixel[:, 0].long()].T
    # the squeeze rounds to 8 bits twice, each up to 2 px of this ramp
    tolerance = 4 if framing == deca_input.WHOLE_PHOTO else 0.02
    assert torch.allclose(deca_input.to_photo(pixel, prepared.to_photo)[:, :2], shown, atol=tolerance)


def test_the_face_crop_is_deca_s_own(astronaut):
    """DECA's steps (box → square → similarity → warp) with scikit-image, which DECA uses."""
    transform = pytest.importorskip("skimage.transform")
    face = detect(astronaut[0])[0]
    left, top, right, bottom = face.box.double().tolist()
    old_size = (right - left + bottom - top) / 2
    centre = np.array([(left + right) / 2, (top + bottom) / 2 + old_size * 0.12])
    size = int(old_size * 1.25)
    corners = centre + np.array([[-size, -size], [-size, size], [size, -size]]) / 2
    tform = transform.estimate_transform("similarity", corners, np.array([[0, 0], [0, 223], [223, 0]]))
    theirs = transform.warp(astronaut[0].numpy(), tform.inverse, output_shape=(224, 224))

    ours = deca_input.prepare(face, deca_input.FACE_CROP)
    assert (ours.image[0].movedim(0, -1) - torch.from_numpy(theirs)).abs().max() < 2e-3
    assert np.allclose(ours.to_photo.numpy(), tform.inverse.params[:2], atol=1e-3)


def test_the_crop_is_black_where_the_photo_ends():
    prepared = deca_input.prepare(face_in(torch.ones(100, 100, 3), (60, 60, 120, 120)), deca_input.FACE_CROP)
    assert prepared.image[0, :, 40, 40].tolist() == pytest.approx([1, 1, 1])
    assert prepared.image[0, :, 200, 200].tolist() == [0, 0, 0]


def test_the_camera_sees_right_to_the_right_up_above_and_the_nose_in_front():
    points = torch.tensor([[[0.0, 0, 0], [0.1, 0, 0], [0, 0.1, 0], [0, 0, 0.1]]])
    centre, right, up, front = deca.project(points, torch.tensor([[5.0, 0.1, 0.0]]))[0]
    assert centre.tolist() == pytest.approx([112 * 1.5, 112, 0])
    assert (right - centre).tolist() == pytest.approx([56, 0, 0], abs=1e-4)
    assert (up - centre).tolist() == pytest.approx([0, -56, 0], abs=1e-4)
    assert (front - centre).tolist() == pytest.approx([0, 0, -56], abs=1e-4)


@pytest.fixture(scope="module")
def stand_in(standin) -> tuple[deca.Regressor, flame.Flame]:
    folder = standin / "face_model"
    return deca.load_regressor(folder / "deca_model.safetensors"), flame.load(folder / "generic_model.safetensors")


@pytest.mark.parametrize("framing", deca_input.FRAMINGS)
def test_the_mesh_knows_where_the_photo_shows_it(stand_in, astronaut, framing):
    regressor, model = stand_in
    face = detect(astronaut[0])[0]
    meshes = [face_mesh.reconstruct(face, regressor, model, mode, framing) for mode in face_mesh.MODES]
    code = deca.split(regressor((prepared := deca_input.prepare(face, framing)).image))
    expected = deca.project(model.decode(code.shape, code.expression, code.pose), code.camera)[0]
    assert torch.allclose(meshes[0].in_photo, deca_input.to_photo(expected, prepared.to_photo), rtol=1e-5)
    assert torch.equal(meshes[0].in_photo, meshes[1].in_photo), "the neutral mesh is still seen with its expression"


def test_an_input_that_there_is_not_is_named(stand_in, astronaut):
    with pytest.raises(MeshError, match="whole photo, face crop"):
        face_mesh.reconstruct(face_in(astronaut[0]), *stand_in, framing="the cat")
