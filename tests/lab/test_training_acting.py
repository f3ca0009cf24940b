"""Stage identity with faces that act: meshes as capture would know them, tokens of each latent frame."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

pytest.importorskip("accelerate")

from accelerate import Accelerator

from fantasyid_core.dit.acting import per_latent_frame
from fantasyid_core.errors import TrainingError
from fantasyid_core.io.weights import read_config
from fantasyid_core.reconstruction import flame
from fantasyid_core.reconstruction.face_mesh import FaceMesh
from fantasyid_core.reconstruction.performance import Performance, basis_of, perform
from fantasyid_lab.nano import SHIPPED
from fantasyid_lab.training import loop
from fantasyid_lab.training.acting import Performances, as_captured, meshes_per_latent_frame
from fantasyid_lab.training.identity import IdentityStage
from fantasyid_lab.training.stage import Context

FRAMES = 9


@pytest.fixture(scope="module")
def face() -> flame.Flame:
    return flame.load(SHIPPED / "face_model" / "generic_model.safetensors")


@pytest.fixture
def performances() -> Performances:
    generator = torch.Generator().manual_seed(0)
    return Performances(
        torch.rand(2, FRAMES, 50, generator=generator), 20 * torch.randn(2, FRAMES, 3, generator=generator)
    )


def test_meshes_are_those_that_perform_makes(face: flame.Flame, performances: Performances):
    """Trained with what is given at inference."""
    neutral = face.decode(torch.randn(2, 100, generator=torch.Generator().manual_seed(1)))
    meshes = meshes_per_latent_frame(face, neutral, performances)
    for i in range(2):
        captured = Performance(
            performances.expression[i],
            torch.zeros(FRAMES, 3),
            performances.pose[i],
            torch.ones(FRAMES),
            8.0,
            basis_of(face),
        )
        moving = per_latent_frame(perform(face, FaceMesh(neutral[i]), captured))
        torch.testing.assert_close(meshes[i], moving.vertices(), rtol=0, atol=1e-6)


def test_errors_of_capture_have_their_size(face: flame.Flame):
    still = Performances(torch.zeros(400, FRAMES, 50), torch.zeros(400, FRAMES, 3))

    def captured(noise: float, missing: float = 0.0) -> Performances:
        return as_captured(still, face, torch.Generator().manual_seed(0), noise, missing)

    assert not any(x.any() for x in captured(0.0, 0.5).tensors.values())
    pitch = captured(1.0).pose[..., 1]
    assert pitch.std() == pytest.approx(2.5, rel=0.1)
    assert (pitch - pitch.mean(1, keepdim=True)).std() == pytest.approx(0.2, rel=0.1)
    points = torch.einsum("pv,vdk->pdk", face.dense_landmarks, face.expression_basis[..., :50])
    off = torch.einsum("pdk,btk->btpd", points, captured(1.0).expression[:50])
    assert off.square().sum(-1).mean().sqrt() * 1000 == pytest.approx(0.64, rel=0.1)
    assert captured(2.0).pose.std() == pytest.approx(2 * captured(1.0).pose.std().item())


def test_a_missing_stretch_is_drawn_through(face: flame.Flame):
    time = torch.arange(25.0)
    curve = Performances((time**2).expand(200, 1, 25).mT, time.expand(200, 3, 25).mT)
    filled = as_captured(curve, face, torch.Generator().manual_seed(0), 0.0, 0.5)
    changed = (filled.expression != curve.expression)[..., 0]
    assert 0.35 < changed.any(1).float().mean() < 0.65
    assert changed.sum(1).max() <= 12
    for row in changed.any(1).nonzero().flatten().tolist():
        (places,) = changed[row].nonzero(as_tuple=True)
        before, after = int(places[0]) - 1, int(places[-1]) + 1
        line = filled.expression[row, :, 0][max(before, 0) : after + 1]
        if before >= 0 and after < 25:
            assert (line.diff().diff().abs() < 1e-3).all()
        else:
            assert (line[: len(places)].diff() == 0).all()


@pytest.fixture
def make_stage(context: Callable[..., Context]) -> Callable[..., IdentityStage]:
    """Makes the stage with half of its samples acting."""

    def make(**options) -> IdentityStage:
        return IdentityStage(context("identity", steps=2, options={"pictures": 0.0, "acting_share": 0.5} | options))

    return make


@pytest.mark.parametrize("lr_mult", [0.0, 1.0])
def test_half_of_the_samples_act_and_the_others_rest(lr_mult: float, make_stage: Callable[..., IdentityStage]):
    stage = make_stage(encoder_lr_mult=lr_mult, mesh_lr_mult=lr_mult)
    batch = stage.batch(0, stage.context.generator(0))
    with torch.no_grad():
        tokens = stage.objective.identity_tokens(batch.reference)
    count, frames = batch.latents.shape[:2]
    faces = stage.objective.abstractor.side**2
    assert tokens.shape[:2] == (count, frames)
    assert torch.equal(tokens[:, :, :faces], tokens[:, :1, :faces].expand(-1, frames, -1, -1))
    moves = (tokens - tokens[:, :1])[:, 1:, faces:].flatten(1).any(1)
    assert moves.tolist() == [i < count // 2 for i in range(count)]
    stage.objective(batch)["loss"].backward()
    gradient = next(stage.objective.spiral_net.parameters()).grad
    assert (gradient is not None) == bool(lr_mult)


def test_faces_that_rest_in_the_clip_train_as_those_that_do_not_act(make_stage: Callable[..., IdentityStage]):
    stage = make_stage()
    batch = stage.batch(0, stage.context.generator(0))
    still = Performances(torch.zeros(2, FRAMES, 50), torch.zeros(2, FRAMES, 3))
    constant = replace(batch.reference, meshes=None)
    losses = [
        stage.objective(replace(batch, reference=reference))["loss"].item()
        for reference in (constant, stage.act(constant, still), batch.reference)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] != pytest.approx(losses[0], rel=1e-5)


def test_an_acting_stage_trains_is_looked_at_and_says_so(make_stage: Callable[..., IdentityStage]):
    stage = make_stage(pictures=0.5, acting_missing=0.5, encoder_lr_mult=0.0, mesh_lr_mult=0.0)
    assert stage.validate().keys() >= {"loss", "loss_acting"}
    loop.train(stage, Accelerator(cpu=True), resume=False)
    assert read_config(stage.context.model_folder / "transformer")["trained_with_acting"] is True


def test_acting_without_a_known_motion_or_a_mesh_is_refused(make_stage: Callable[..., IdentityStage]):
    for options in ({"branch_3d": False}, {"data": "clips"}):
        with pytest.raises(TrainingError, match="acting_share needs the pool"):
            make_stage(**options)
