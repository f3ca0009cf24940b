"""Views → identity: with one view every way to combine is the release; with several each does what its name says."""

import dataclasses
from pathlib import Path

import pytest
import torch

from fantasyid_core.dit.injection import Injection, InjectionRun, LayerAttention
from fantasyid_core.errors import IdentityError, WeightsError
from fantasyid_core.fusion.checkpoint import split_published
from fantasyid_core.fusion.identity import (
    BEST,
    BY_POSE,
    COMBINE,
    CONCATENATED,
    FIRST,
    MEAN,
    Identity,
    IdentityEncoder,
    build_encoder,
    fuse,
    load_identity,
    save_identity,
    view_weights,
)
from fantasyid_core.fusion.image_tower import ImageTower
from fantasyid_core.fusion.mesh_hierarchy import load as load_topology
from fantasyid_core.io.weights import read, read_config
from fantasyid_core.reconstruction.animation import Animation
from fantasyid_core.reconstruction.face_mesh import FaceMesh
from fantasyid_core.views.collection import FaceViews


@pytest.fixture(scope="module")
def encoder(standin: Path) -> IdentityEncoder:
    return build_encoder(
        split_published(read(standin / "transformer")),
        ImageTower.from_state_dict(read(standin / "face_encoder" / "image_tower.safetensors"), live_only=True),
        load_topology(standin / "face_model" / "topology.safetensors"),
        read_config(standin / "transformer"),
    )


@pytest.fixture(scope="module")
def mesh(standin: Path) -> FaceMesh:
    return FaceMesh(load_topology(standin / "face_model" / "topology.safetensors").template)


@pytest.fixture(scope="module")
def views() -> FaceViews:
    """Four different crops; the third has the best score, the first looks at the camera."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 3, 8, 8, generator=generator)
    crops = torch.nn.functional.interpolate(coarse, (512, 512), mode="bilinear").movedim(1, -1)
    poses = torch.tensor([(0.0, 0.0, 0.0), (30.0, 0.0, 0.0), (-45.0, 10.0, 0.0), (80.0, 0.0, 0.0)])
    return FaceViews(crops, torch.tensor([0.5, 0.6, 0.9, 0.5]), poses, ("photo", "frame 1", "frame 2", "frame 3"))


def part(views: FaceViews, *indices: int) -> FaceViews:
    chosen = list(indices)
    return FaceViews(views.crops[chosen], views.scores[chosen], views.poses[chosen])


def difference(a: Identity, b: Identity) -> float:
    return float((a.tokens - b.tokens).abs().max() / b.tokens.abs().max())


@pytest.mark.parametrize("combine", COMBINE)
def test_one_view_is_the_release(encoder, mesh, views, combine):
    reference = part(views, 0)
    face_tokens = encoder.face_tokens(reference.crops)
    released = Identity(face_tokens[0], encoder.vertex_tokens(mesh.vertices[None], face_tokens)[0], reference.crops[0])
    identity = fuse(encoder, reference, mesh, combine)
    assert identity.tokens.shape == released.tokens.shape
    assert difference(identity, released) <= 1e-6
    assert torch.equal(identity.image, reference.crops[0])


def test_the_first_and_the_best_view_stand_alone(encoder, mesh, views):
    assert difference(fuse(encoder, views, mesh, FIRST), fuse(encoder, part(views, 0), mesh)) == 0
    assert difference(fuse(encoder, views, mesh, BEST), fuse(encoder, part(views, 2), mesh)) == 0
    assert difference(fuse(encoder, views, mesh, BEST), fuse(encoder, views, mesh, FIRST)) > 1e-3


def test_the_first_frame_stays_the_reference(encoder, mesh, views):
    assert all(torch.equal(fuse(encoder, views, mesh, combine).image, views.crops[0]) for combine in COMBINE)


def test_the_mean_is_over_the_face_tokens_of_all(encoder, mesh, views):
    identity = fuse(encoder, views, mesh, MEAN)
    torch.testing.assert_close(identity.face_tokens, encoder.face_tokens(views.crops).mean(0), rtol=1e-5, atol=1e-6)


def test_concatenated_tokens_are_those_of_every_view(encoder, mesh, views):
    together = fuse(encoder, views, mesh, CONCATENATED)
    alone = [fuse(encoder, part(views, i), mesh) for i in range(4)]
    torch.testing.assert_close(together.face_tokens, torch.cat([one.face_tokens for one in alone]))
    torch.testing.assert_close(together.vertex_tokens, torch.cat([one.vertex_tokens for one in alone]))


def test_repeating_a_view_changes_nothing_in_the_video(encoder, mesh, views):
    """Each view brings its vertex tokens along, so the balance of 2-D and 3-D tokens in the attention stays."""
    one = fuse(encoder, part(views, 0), mesh)
    thrice = fuse(encoder, part(views, 0, 0, 0), mesh, CONCATENATED)
    torch.manual_seed(0)
    layer = LayerAttention(32, one.tokens.shape[1], 64, 16)
    hidden = torch.randn(2, 50, 32)

    def injected(identity: Identity) -> torch.Tensor:
        return InjectionRun([Injection(identity.tokens)]).add_to(hidden, 0, layer, 0.0)

    torch.testing.assert_close(injected(thrice), injected(one), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(injected(fuse(encoder, views, mesh, CONCATENATED)), injected(one), atol=1e-4)


def test_weights_add_up_and_prefer_frontal_views_with_a_high_score(views):
    for combine in COMBINE:
        assert view_weights(views, combine).sum() == pytest.approx(1)
    frontal, turned, best, profile = view_weights(views, BY_POSE).tolist()
    assert frontal > turned > profile
    assert best > profile
    assert view_weights(part(views, 1, 3), BY_POSE)[0] > 0.9


def test_without_poses_the_scores_decide(views):
    unknown = dataclasses.replace(views, poses=None)
    torch.testing.assert_close(view_weights(unknown, BY_POSE), views.scores / views.scores.sum())


def test_views_that_all_look_away_still_count(views):
    away = dataclasses.replace(views, poses=torch.full((4, 3), 3000.0))
    assert view_weights(away, BY_POSE).isfinite().all()
    assert view_weights(dataclasses.replace(views, scores=torch.zeros(4)), BY_POSE).sum() == pytest.approx(1)


def test_concatenated_identities_are_saved_and_loaded(encoder, mesh, views, tmp_path):
    identity = fuse(encoder, views, mesh, CONCATENATED)
    save_identity(identity, tmp_path / "me.safetensors")
    loaded = load_identity(tmp_path / "me.safetensors")
    assert torch.equal(loaded.tokens, identity.tokens)


def test_an_acting_face_has_vertex_tokens_of_every_mesh_and_keeps_them_in_its_file(encoder, mesh, views, tmp_path):
    rest = mesh.vertices
    acting = Animation(
        rest, None, rest[..., None], torch.tensor([[0.0], [0.1]]), torch.zeros(2, 3), torch.zeros(3), fps=2.0
    )
    two = part(views, 0, 2)
    identity = fuse(encoder, two, mesh, CONCATENATED, acting=acting)
    constant = fuse(encoder, two, mesh, CONCATENATED)
    larger = fuse(encoder, two, FaceMesh(1.1 * rest), CONCATENATED)
    assert torch.equal(identity.tokens, constant.tokens)
    expected = torch.stack([constant.vertex_tokens, larger.vertex_tokens])
    torch.testing.assert_close(identity.frame_tokens, expected, rtol=0, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    save_identity(identity, tmp_path / "acts.safetensors")
    assert torch.equal(load_identity(tmp_path / "acts.safetensors").frame_tokens, identity.frame_tokens)
    save_identity(constant, tmp_path / "rests.safetensors")
    assert load_identity(tmp_path / "rests.safetensors").frame_tokens is None
    save_identity(dataclasses.replace(identity, frame_tokens=torch.zeros(2, 3, 5)), tmp_path / "torn.safetensors")
    with pytest.raises(IdentityError, match=r"of frames \(2, 3, 5\)"):
        load_identity(tmp_path / "torn.safetensors")


def test_a_model_trained_on_places_sees_a_head_that_leans(standin, encoder, mesh, views):
    """Depth alone does not change in the picture's plane."""
    published = split_published(read(standin / "transformer"))
    hierarchy = load_topology(standin / "face_model" / "topology.safetensors")

    def leaning(**config) -> float:
        config = read_config(standin / "transformer") | config
        tokens = build_encoder(published, encoder.tower, hierarchy, config).vertex_tokens
        face_tokens = encoder.face_tokens(views.crops[:1])
        x, y, z = mesh.vertices.unbind(1)
        leant = torch.stack([0.8 * x - 0.6 * y, 0.6 * x + 0.8 * y, z], 1)
        return float((tokens(leant[None], face_tokens) - tokens(mesh.vertices[None], face_tokens)).abs().max())

    assert leaning() < 1e-5
    assert leaning(vertex_axes="xyz") > 1e-3
    with pytest.raises(WeightsError, match="must name some of x, y and z"):
        leaning(vertex_axes="zz")


def test_a_model_that_sees_no_shape_cannot_be_directed(encoder, mesh, views):
    flat = IdentityEncoder(encoder.tower, encoder.abstractor, encoder.spiral_net, encoder.reducer, ["2d"])
    still = Animation(
        mesh.vertices, None, torch.zeros(0, 3, 0), torch.zeros(1, 0), torch.zeros(1, 3), torch.zeros(3), 8.0
    )
    with pytest.raises(IdentityError, match="Remove the link to 'animation'"):
        fuse(flat, views, mesh, acting=still)


def test_an_unknown_way_to_combine_names_those_that_there_are(encoder, mesh, views):
    with pytest.raises(IdentityError, match="weighted by pose"):
        fuse(encoder, views, mesh, "median")
