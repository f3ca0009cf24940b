"""Stage identity: what is kept of reference photos, samples without an identity."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

pytest.importorskip("accelerate")

from accelerate import Accelerator

from fantasyid_lab import nano
from fantasyid_lab.people.person import TRAIN
from fantasyid_lab.training import data, loop
from fantasyid_lab.training.captions import Captions
from fantasyid_lab.training.identity import IdentityStage
from fantasyid_lab.training.identity_batch import Clips, IdentityBatch, Reference, ReferenceCrops
from fantasyid_lab.training.pool import Pool
from fantasyid_lab.training.references import REFRESH_EVERY
from fantasyid_lab.training.stage import Context


@pytest.fixture
def make_stage(context: Callable[..., Context]) -> Callable[..., IdentityStage]:
    """Makes the stage with these options."""

    def make(steps: int = 4, **options) -> IdentityStage:
        return IdentityStage(context("identity", steps=steps, options={"pictures": 0.0} | options))

    return make


def fixed_loss(stage: IdentityStage) -> float:
    """Of a batch that is always the same."""
    with torch.no_grad():
        return stage.objective(stage.batch(0, stage.context.generator(0)))["loss"].item()


def velocity(stage: IdentityStage, batch: IdentityBatch) -> torch.Tensor:
    """(B, t, 16, h, w)"""
    with torch.no_grad():
        tokens = stage.objective.identity_tokens(batch.reference)
        return stage.objective.velocity(batch.latents, batch.image, batch.text, batch.timestep, tokens, batch.present)


def test_what_is_kept_of_photos_is_what_is_seen_in_them(make_stage: Callable[..., IdentityStage], monkeypatch):
    monkeypatch.setattr(data, "jitter", lambda generator, count: torch.zeros(count, 4))  # nothing left to chance
    monkeypatch.setattr("fantasyid_lab.training.face.degrade", lambda frames, generator: frames)
    stage = make_stage(first_frame=True)
    people, photos = torch.tensor([3, 0, 3]), torch.tensor([1, 0, 0])
    pool, generator = stage.context.pool, torch.Generator()
    with torch.no_grad():
        cached = stage.source.references.of(people, photos)
        encoded = stage.source.encode_pictures(
            pool.stills[people, photos], pool.still_landmarks[people, photos], generator
        )
    assert cached.tensors.keys() == {"hidden_states", "vertices", "first_frame"}
    for name, x in encoded.tensors.items():
        torch.testing.assert_close(cached.tensors[name], x, atol=1e-5, rtol=1e-4)


def test_the_first_frame_is_the_one_that_the_sampler_makes_of_the_crop(make_stage: Callable[..., IdentityStage]):
    from fantasyid_core.video.latents import squeeze_to_frame

    stage, vae = make_stage(first_frame=True), nano.build(sizes=nano.TINY).vae.eval()
    blobs = torch.rand(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    crops = torch.nn.functional.interpolate(blobs, (512, 512), mode="bilinear").movedim(1, -1)
    with torch.no_grad():
        latents, vertices = torch.zeros(4, 3, 16, 4, 4), stage.context.model.face.template.expand(4, -1, -1)
        clips = Clips(latents, latents[:, :, 0], torch.zeros(4, 1, 1), ReferenceCrops(crops, vertices))
        _, image = stage.condition(clips)
        frames = torch.cat([squeeze_to_frame(crop, 32, 32) for crop in crops]).movedim(-1, 1)[:, :, None]
        first = vae.encode(frames * 2 - 1).mean * vae.config.scaling_factor
    assert not image[:, 1:].any()
    error, to_another = ((image[:, 0] - x).norm() for x in (first[:, :, 0], first[:, :, 0].roll(1, 0)))
    assert error < 0.1 * to_another  # another filter squeezes it


def test_a_sample_without_its_identity_depends_on_nobody(make_stage: Callable[..., IdentityStage]):
    stage = make_stage(first_frame=True, identity_dropout=0.5)
    batch = replace(stage.batch(0, stage.context.generator(0)), present=torch.tensor([0.0, 1, 0, 1]))
    reference, image = batch.reference.map(lambda x: x + torch.randn_like(x)), torch.randn_like(batch.image)
    other = replace(batch, reference=reference, image=batch.image + image)
    same = (velocity(stage, batch) == velocity(stage, other)).flatten(1).all(1)
    assert same.tolist() == [True, False, True, False]
    everybody = velocity(stage, replace(batch, present=None))
    assert torch.equal(everybody[1::2], velocity(stage, batch)[1::2])


def test_that_share_of_samples_has_no_identity(make_stage: Callable[..., IdentityStage]):
    stage = make_stage(identity_dropout=0.25)
    present = torch.cat([stage.batch(i, stage.context.generator(i)).present for i in range(25)])
    assert 0.6 < present.mean() < 0.9
    assert make_stage().batch(0, stage.context.generator(0)).present is None


def test_photos_are_looked_at_anew_in_few_of_the_batches(make_stage: Callable[..., IdentityStage]):
    source = make_stage().source
    references, people = source.references, torch.tensor([1, 2])
    encoded, batch_sizes = source.encode_pictures, []

    def see(*arguments) -> Reference:
        batch_sizes.append(len(arguments[0]))
        return encoded(*arguments)

    source.encode_pictures = see
    batches = [references.of(people, people - 1).hidden_states for _ in range(REFRESH_EVERY + 1)]
    first_sight, renewals = batch_sizes[:-2], batch_sizes[-2:]
    assert sum(first_sight) == source.context.pool.people * source.context.pool.settings.stills
    assert renewals == [2, 2]
    assert all(torch.equal(batches[0], x) for x in batches[1:REFRESH_EVERY])
    assert not torch.equal(batches[0], batches[REFRESH_EVERY])


def test_the_depth_of_a_face_survives_bfloat16(make_stage: Callable[..., IdentityStage]):
    """Depths differ by millimetres; what they do to the tokens is the same in half the bytes."""
    stage = make_stage()
    reference = stage.batch(0, stage.context.generator(0)).reference
    deeper = replace(reference, vertices=reference.vertices * torch.tensor([1.0, 1.0, 1.05]))
    moved = []
    for enabled in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            tokens = [stage.objective.identity_tokens(x).float() for x in (reference, deeper)]
        moved.append((tokens[1] - tokens[0]).flatten())
    assert moved[0].any()
    assert torch.cosine_similarity(*moved, dim=0) > 0.9


@pytest.mark.parametrize(("encoder_lr_mult", "dit_lr_mult"), [(0.0, 1.0), (1.0, 0.0)])
def test_encoder_and_dit_learn_at_rates_of_their_own(
    encoder_lr_mult: float, dit_lr_mult: float, make_stage: Callable[..., IdentityStage]
):
    rates = {"encoder_lr_mult": encoder_lr_mult, "mesh_lr_mult": encoder_lr_mult, "dit_lr_mult": dit_lr_mult}
    stage = make_stage(unfreeze=[""], steps=2, **rates)
    model = stage.context.model
    learns = {
        model.encoder.abstractor: encoder_lr_mult,
        model.encoder.spiral_net: encoder_lr_mult,
        model.transformer.transformer_blocks: dit_lr_mult,
        model.transformer.layer_attention: 1.0,
    }
    before = [[x.clone() for x in module.parameters()] for module in learns]
    loop.train(stage, Accelerator(cpu=True), resume=False)
    for (module, lr_mult), old in zip(learns.items(), before, strict=True):
        same = [torch.equal(x, y) for x, y in zip(module.parameters(), old, strict=True)]
        assert not any(same) if lr_mult else all(same)


def test_captions_are_read_once_and_again_when_their_clips_make_room(pools: tuple[Pool, Pool]):
    pool = Pool(pools[0].settings, TRAIN, 0, pools[0].device)
    pool.prefill(4)
    read = []

    def lengths(ids: torch.Tensor) -> torch.Tensor:
        read.append(len(ids))
        return (ids != 0).sum(1, keepdim=True)[..., None].float()

    captions, rows = Captions(pool, lengths), torch.tensor([4, 0, 5 + 7])
    first = captions.of(rows)
    captions.of(rows)
    assert read == [5, 8]  # of clips, of photos
    pool.add()
    torch.testing.assert_close(captions.of(rows), lengths(pool.caption[rows]))
    assert not torch.equal(captions.of(rows), first)


@pytest.mark.parametrize("frames", [3, 1])
def test_compiled_injection_layers_compute_the_same_and_share_their_graphs(
    frames: int, make_stage: Callable[..., IdentityStage]
):
    from torch._dynamo.utils import counters

    stage = make_stage(identity_dropout=0.5)
    batch = stage.batch(0, stage.context.generator(0))
    batch = replace(
        batch, **{name: getattr(batch, name)[:, :frames] for name in ("latents", "face_mask", "image", "noise")}
    )
    layers = stage.context.model.transformer.layer_attention
    assert set(layers) <= set(stage.compile())

    def results() -> list[torch.Tensor]:
        stage.objective.zero_grad()
        loss = stage.objective(batch)["loss"]
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in layers.parameters())]

    eager = results()
    torch._dynamo.reset()
    counters.clear()
    for layer in layers:
        layer.compile(backend="aot_eager")
    for a, b in zip(results(), eager, strict=True):
        torch.testing.assert_close(a, b)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


WHOLE = [[""], ["transformer_blocks", "patch_embed", "norm_final", "norm_out", "proj_out", "time_embedding"]]


@pytest.mark.parametrize("unfreeze", WHOLE, ids=["all", "by name"])
def test_the_whole_dit_can_be_trained_with_the_identity(unfreeze: list[str], make_stage: Callable[..., IdentityStage]):
    stage = make_stage(unfreeze=unfreeze, first_frame=True, identity_dropout=0.25)
    before_it = {name: x.clone() for name, x in stage.context.model.transformer.state_dict().items()}
    tower = {name: x.clone() for name, x in stage.context.model.encoder.tower.state_dict().items()}
    before = fixed_loss(stage)
    loop.train(stage, Accelerator(cpu=True), resume=False)
    assert fixed_loss(stage) < before
    read = nano.read(stage.context.model_folder)
    assert read.config["first_frame_condition"]
    for name, x in read.transformer.named_parameters():
        assert not torch.equal(x, before_it[name].half().float()), name
    for name, x in stage.context.model.encoder.tower.state_dict().items():
        assert torch.equal(x, tower[name])


def test_muon_takes_the_matrices_of_an_unfrozen_dit(make_stage: Callable[..., IdentityStage]):
    from fantasyid_lab.training.optimizers import optimizers

    stage = make_stage(unfreeze=[""])
    trained = [p for p in stage.objective.parameters() if p.requires_grad]
    _, muon = optimizers(trained, stage.muon_parameters(), stage.settings)
    taken = {id(p) for group in muon.param_groups for p in group["params"]}
    blocks = stage.context.model.transformer.transformer_blocks
    assert all(id(p) in taken for block in blocks for p in (block.attn1.to_q.weight, block.ff.net[2].weight))


def test_an_unfrozen_dit_goes_on_from_a_checkpoint_bit_for_bit(
    make_stage: Callable[..., IdentityStage], stopped_and_resumed: Callable
):
    options = {"unfreeze": [""], "first_frame": True, "identity_dropout": 0.25, "multi_view": False}
    stopped_and_resumed(lambda: make_stage(**options), Accelerator(cpu=True))


def test_tokens_of_a_single_frame_lie_in_memory_like_those_of_a_video(make_stage: Callable[..., IdentityStage]):
    """Compiled blocks return wrong gradients through a transposed view."""
    transformer = make_stage().context.model.transformer
    for frames in (1, 3):
        encoder_hidden_states, hidden_states = transformer.embed(
            torch.rand(2, frames, 32, 4, 4), torch.rand(2, 226, 16)
        )
        assert hidden_states.is_contiguous()
        assert encoder_hidden_states.is_contiguous()


def test_where_the_encoder_is_not_trained_its_tokens_are_kept(make_stage: Callable[..., IdentityStage]):
    still, learning = (
        make_stage(encoder_lr_mult=0.0, mesh_lr_mult=0.0),
        make_stage(encoder_lr_mult=0.1, mesh_lr_mult=0.0),
    )
    batches = [stage.batch(0, stage.context.generator(0)) for stage in (still, learning)]
    kept, encoded = (batch.reference for batch in batches)
    assert kept.tensors.keys() == {"tokens"}
    assert encoded.tensors.keys() == {"hidden_states", "vertices"}
    with torch.no_grad():
        tokens = learning.objective.identity_tokens(encoded)
        torch.testing.assert_close(kept.tokens, tokens, atol=1e-5, rtol=1e-4)
        losses = [stage.objective(batch)["loss"] for stage, batch in zip((still, learning), batches, strict=True)]
    torch.testing.assert_close(*losses)


def test_balanced_times_change_what_is_trained_not_what_is_measured(make_stage: Callable[..., IdentityStage]):
    plain, balanced = (make_stage(loss_weighting=power, face_weight=1.0) for power in (0.0, 0.5))
    assert plain.validate() == balanced.validate()
    batch = balanced.batch(0, balanced.context.generator(0))
    counts = balanced.objective.loss_weights[batch.timestep]
    samples = [batch.map(lambda x, i=i: x[[i]]) for i in range(len(counts))]
    with torch.no_grad():
        alone = torch.stack([plain.objective(sample)["loss"] for sample in samples])
        torch.testing.assert_close(balanced.objective(batch)["loss"], (counts * alone).mean())
    assert counts.std() > 0


@pytest.mark.parametrize("multi_view", [True, False])
def test_a_photo_to_train_on_is_its_own_reference_only_in_that_ablation(
    multi_view: bool, make_stage: Callable[..., IdentityStage], monkeypatch: pytest.MonkeyPatch
):
    source = make_stage(pictures=1.0, multi_view=multi_view).source
    pool, of, shown, batch_sizes = source.context.pool, source.references.of, [], []
    pictures = pool.pictures
    monkeypatch.setattr(pool, "pictures", lambda *which: shown.append(torch.stack(which)) or pictures(*which))
    monkeypatch.setattr(source.references, "of", lambda *which: batch_sizes.append(torch.stack(which)) or of(*which))
    source.batch(0, 8, source.context.generator(0))
    assert torch.equal(shown[0][0], batch_sizes[0][0])
    assert (shown[0][1] == batch_sizes[0][1]).all() != multi_view
    assert (shown[0][1] == batch_sizes[0][1]).any() != multi_view
