"""A performance: captured from one person's video, put on another's mesh, saved and loaded."""

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fantasyid_core.detection.face_track import FaceTrack
from fantasyid_core.errors import MeshError, WeightsError, WeightsMissingError
from fantasyid_core.reconstruction import animation
from fantasyid_core.reconstruction.dense_fit import known_points
from fantasyid_core.reconstruction.face_mesh import FaceMesh
from fantasyid_core.reconstruction.flame import HEAD, JAW, Flame
from fantasyid_core.reconstruction.performance import (
    Performance,
    capture,
    load_performance,
    perform,
    save_performance,
)
from fantasyid_lab.people.clip import clip
from fantasyid_lab.people.motion import FPS
from fantasyid_lab.people.person import TEST, person
from tools.measure.dense import FIXTURE
from tools.measure.perform import errors, true_frames
from tools.measure.reconstruction import face_model


@pytest.fixture(scope="module")
def model() -> Flame:
    return face_model()


@pytest.fixture(scope="module")
def track() -> FaceTrack:
    """Points as the network read them in every other frame of a rendered clip of the first TEST person."""
    with safe_open(FIXTURE, "pt") as file:
        points = file.get_tensor("clips")[0, ::2]
    return FaceTrack(points, torch.ones(len(points)), torch.ones(len(points)).bool(), FPS / 2)


@pytest.fixture(scope="module")
def captured(model, track) -> Performance:
    return capture(model, track)


@pytest.fixture
def mesh(model) -> FaceMesh:
    """Another person's."""
    return FaceMesh(model.template, model.faces, person(TEST[1]).shape_code)


def numbered(frames: int, model: Flame, captured: Performance) -> Performance:
    """Frames whose yaw is their number."""
    pose = torch.arange(frames)[:, None] * torch.tensor([1.0, 0, 0])
    return replace(
        captured, expression=torch.zeros(frames, 50), jaw=torch.zeros(frames, 3), pose=pose, confidence=pose[:, 0]
    )


def test_another_person_does_what_was_captured(model, captured, mesh):
    """mm, against that person's own clip with the same expressions and head pose; 16 people had 1.7, at most 2.6."""
    true = true_frames(model, person(TEST[1]), clip(person(TEST[0]), TEST[0]))[::2]
    off = errors(model, perform(model, mesh, captured).vertices(), true).mean()
    without = errors(model, perform(model, mesh, captured, expression_strength=0, head_strength=0).vertices(), true)
    assert off < 2.7
    assert off < 0.5 * without.mean()


def test_strengths_act_on_expression_and_head_apart(model, captured, mesh):
    neutral = model.decode(mesh.shape_code[None])[0]
    still = perform(model, mesh, captured, expression_strength=0, head_strength=0)
    torch.testing.assert_close(still.vertices(), neutral.expand(captured.frames, -1, -1))
    assert torch.equal(perform(model, mesh, captured, head_strength=0.5).pose, captured.pose / 2)
    double = perform(model, mesh, captured, expression_strength=2, head_strength=0).vertices() - neutral
    single = perform(model, mesh, captured, head_strength=0).vertices() - neutral
    torch.testing.assert_close(double, 2 * single, atol=1e-6, rtol=0)


def test_a_mesh_from_a_file_moves_by_the_same_ways(model, captured, mesh):
    """Its own vertices are then the neutral face; millimetres are set right."""
    neutral = model.decode(mesh.shape_code[None])[0]
    found = perform(model, FaceMesh(1000 * neutral, model.faces), captured).vertices()
    torch.testing.assert_close(found, perform(model, mesh, captured).vertices(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "frames"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"first": 1, "last": 3}, [1, 2, 3]),
        ({"first": -2}, [3, 4]),
        ({"first": 3, "length": 4, "afterwards": "hold"}, [3, 4, 4, 4]),
        ({"first": 3, "length": 5, "afterwards": "loop"}, [3, 4, 3, 4, 3]),
        ({"first": 2, "length": 7, "afterwards": "ping-pong"}, [2, 3, 4, 3, 2, 3, 4]),
        ({"first": 4, "length": 2, "afterwards": "ping-pong"}, [4, 4]),
        ({"length": 2}, [0, 1]),
    ],
)
def test_a_part_is_taken_and_held_or_repeated(model, captured, mesh, options, frames):
    found = perform(model, mesh, numbered(5, model, captured), **options)
    assert found.pose[:, 0].tolist() == frames


def test_frames_without_the_face_lie_between_those_around(model, track, captured):
    gap = torch.ones(len(track.present)).bool()
    gap[[0, 6, 7]] = False
    lost = FaceTrack(track.points.masked_fill(~gap[:, None, None], torch.nan), gap.float(), gap, FPS)
    found = capture(model, lost)
    assert found.confidence.tolist() == gap.tolist()
    torch.testing.assert_close(found.pose[0], found.pose[1])
    torch.testing.assert_close(found.pose[6], (2 * found.pose[5] + found.pose[8]) / 3)
    assert (found.pose - captured.pose).abs().max() < 3


def test_one_frame_is_a_performance(model, track, captured):
    one = capture(model, FaceTrack(track.points[:1], track.confidence[:1], track.present[:1], FPS))
    assert one.frames == 1
    assert (one.pose - captured.pose[:1]).abs().max() < 5


def test_a_face_model_that_knows_five_landmarks_alone_captures_the_same(model, track, captured):
    """As FLAME's file: the dense ones are registered. Degrees; here half of the frames."""
    five = replace(model, dense_landmarks=None, dense_deviations=None, dense_errors=None)
    half = FaceTrack(track.points[::2], track.confidence[::2], track.present[::2], track.fps / 2)
    assert known_points(five)[0].shape == (478, len(model.template))
    found = capture(five, half)
    assert found.basis == captured.basis
    assert (found.pose - captured.pose[::2]).abs().max() < 5


def test_a_jaw_that_turns_is_captured_as_such(model, track):
    """nano's model with a jaw of the vertices that its own opening moves, and no expression that opens the mouth."""
    opening = model.expression_basis.norm(dim=1).sum(1)
    weights = torch.zeros_like(model.weights)
    weights[:, JAW] = opening / opening.max()
    weights[:, HEAD] = 1 - weights[:, JAW]
    jawed = replace(model, weights=weights)
    found = capture(jawed, track)
    assert found.jaw.shape == (13, 3)
    assert found.expression.shape == (13, 47)
    own = FaceMesh(model.template, model.faces)
    opened = replace(
        found, expression=0 * found.expression, jaw=torch.tensor([0.15, 0, 0]).expand(13, 3), pose=0 * found.pose
    )
    turned = jawed.decode(torch.zeros(1, 1), None, torch.tensor([[0, 0, 0, 0.15, 0, 0]]))
    torch.testing.assert_close(perform(jawed, own, opened).vertices()[0], turned[0], atol=1e-5, rtol=0)


def test_a_saved_performance_is_loaded_as_it_was(tmp_path, captured):
    save_performance(captured, tmp_path / "nod.safetensors")
    assert (tmp_path / "nod.safetensors").stat().st_size < 20_000
    loaded = load_performance(tmp_path / "nod.safetensors")
    for name, value in vars(captured).items():
        found = getattr(loaded, name)
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value, name


def test_what_is_no_performance_is_refused(tmp_path, captured):
    path = tmp_path / "x.safetensors"
    with pytest.raises(WeightsMissingError, match="not there"):
        load_performance(path)
    path.write_bytes(b"0" * 100)
    with pytest.raises(WeightsError):
        load_performance(path)
    save_file({"pose": torch.zeros(2, 3)}, path)
    with pytest.raises(WeightsError, match="no performance"):
        load_performance(path)
    for change in (
        {"pose": torch.zeros(3, 3)},
        {"jaw": torch.full((13, 3), torch.nan)},
        {"fps": 0.0},
        {"expression": torch.zeros(13)},
    ):
        save_performance(replace(captured, **change), path)
        with pytest.raises(WeightsError, match="usable performance"):
            load_performance(path)
    save_performance(captured, path)
    save_file(load_file(path), path, {"format": "fantasyid-performance-1"})
    with pytest.raises(WeightsError, match="frames per second"):
        load_performance(path)


def test_what_does_not_belong_together_is_refused(model, captured, mesh):
    with pytest.raises(MeshError, match="vertices"):
        perform(model, FaceMesh(torch.rand(10, 3)), captured)
    with pytest.raises(MeshError, match="another face model"):
        perform(model, mesh, replace(captured, basis="x"))
    for options in ({"first": 30}, {"first": 4, "last": 3}, {"last": -14}, {"length": -1}, {"afterwards": "stop"}):
        with pytest.raises(MeshError):
            perform(model, mesh, captured, **options)


def test_a_preview_shows_the_head_turn(model, captured, mesh):
    found = perform(model, mesh, numbered(2, model, captured), head_strength=40)
    frames = animation.shade(found, 64)
    assert frames.shape == (2, 64, 64, 3)
    assert (frames[0] - frames[1]).abs().mean() > 0.02
