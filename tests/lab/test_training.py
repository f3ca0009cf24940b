"""Training in miniature, on a CPU: losses fall, killed runs go on, exports load."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("accelerate")

from accelerate import Accelerator

from fantasyid_core.dit import byte_tokens
from fantasyid_core.dit.transformer import from_published
from fantasyid_core.errors import TrainingError
from fantasyid_core.fusion import checkpoint, identity, image_tower, mesh_hierarchy
from fantasyid_core.io import weights
from fantasyid_lab import nano
from fantasyid_lab.latents import decode, encode
from fantasyid_lab.people.clip import still
from fantasyid_lab.people.person import TRAIN, person
from fantasyid_lab.training import __main__ as command
from fantasyid_lab.training import diffusion, face_truth, loop, options, rank_sync, settings
from fantasyid_lab.training.base import BaseBatch
from fantasyid_lab.training.pool import Pool
from fantasyid_lab.training.run import STAGES, Run
from fantasyid_lab.training.stage import Context


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def test_the_tower_is_asked_where_the_face_abstractor_reads(context: Callable[..., Context]):
    objective = STAGES["face"](context("face")).objective
    crops = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = objective.tower.last_hidden_state(objective.tower.preprocess(crops))
        other = hidden.clone()
        other[:, 0] += 1  # the class token
        tokens = objective.tokens(crops)
        assert torch.equal(tokens["patches"], hidden[:, 1:])
        assert torch.equal(tokens["face"], objective.abstractor(other))
        assert not torch.equal(tokens["face"], objective.abstractor(hidden.roll(1, 0)))


def test_every_part_of_the_encoder_learns_who_it_is(context: Callable[..., Context]):
    stage = STAGES["face"](context("face"))
    stage.objective(stage.batch(0, stage.context.generator(0)))["loss"].backward()
    encoder = stage.context.model.encoder
    for part in (encoder.tower.blocks[0], encoder.abstractor, encoder.spiral_net, encoder.reducer):
        silent = [name for name, p in part.named_parameters() if p.grad is None or not p.grad.any()]
        assert not silent


def test_what_an_encoder_has_learned_is_found_in_the_export(context: Callable[..., Context], accelerator: Accelerator):
    stage = STAGES["face"](context("face", steps=2, ema=0.0))
    loop.train(stage, accelerator, resume=False)
    learned, read = stage.context.model.encoder, nano.read(stage.context.model_folder).encoder
    for part in ("abstractor", "spiral_net", "reducer"):
        for mine, its in zip(getattr(learned, part).parameters(), getattr(read, part).parameters(), strict=True):
            torch.testing.assert_close(its, mine, atol=1e-3, rtol=1e-3)


def test_which_coordinates_the_encoder_reads_goes_with_the_model(context: Callable[..., Context]):
    stage = STAGES["face"](context("face", options={"vertex_axes": "xyz"}))
    assert stage.objective.spiral_net.axes == "xyz"
    stage.export()
    assert nano.read(stage.context.model_folder).encoder.spiral_net.axes == "xyz"


@pytest.mark.parametrize("name", STAGES)
def test_the_loss_of_a_fixed_batch_falls(name: str, context: Callable[..., Context]):
    stage = STAGES[name](context(name))
    stage.objective.train()
    batch = stage.batch(0, stage.context.generator(0))
    trained = [p for p in stage.objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = stage.objective(batch)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses


@pytest.mark.parametrize("name", ["vae", "face", "attributes", "text", "base", "identity"])
def test_a_stage_runs_to_its_end_and_leaves_files(name: str, context: Callable[..., Context], accelerator: Accelerator):
    stage = STAGES[name](context(name, steps=2))
    numbers = loop.train(stage, accelerator, resume=False)
    out = stage.context.out
    assert numbers
    assert all(torch.isfinite(torch.tensor(list(numbers.values()))))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "losses" in line] == [1, 2]
    assert lines[-1]["validation"] == numbers
    assert (out / "samples" / f"{name}_loss.png").is_file()


def test_a_stopped_run_goes_on_as_if_it_never_stopped(
    context: Callable[..., Context], accelerator: Accelerator, stopped_and_resumed: Callable
):
    stopped_and_resumed(lambda: STAGES["base"](context("base", steps=4)), accelerator)


def test_an_interrupted_save_leaves_the_last_checkpoint(context: Callable[..., Context], accelerator: Accelerator):
    stage = STAGES["base"](context("base", steps=2))
    loop.train(stage, accelerator, resume=False)
    folder = stage.context.out / "checkpoints" / "base"
    folder.rename(folder.with_name("base.old"))  # killed between two renamings
    (folder.with_name("base.part")).mkdir()
    again = STAGES["base"](context("base", steps=3))
    loop.train(again, accelerator, resume=True)
    lines = (stage.context.out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(x)["step"] for x in lines if "losses" in x] == [1, 2, 3]


def test_on_a_frozen_dit_identity_trains_nothing_but_its_own_modules(context: Callable[..., Context]):
    stage = STAGES["identity"](context("identity", options={"unfreeze": [], "first_frame": False}))
    trained = {name.split(".")[0] for name, p in stage.objective.named_parameters() if p.requires_grad}
    assert trained == {"abstractor", "spiral_net", "reducer", "transformer"}
    dit = [n for n, p in stage.objective.transformer.named_parameters() if p.requires_grad]
    assert all(name.startswith("layer_attention.") for name in dit)


@pytest.mark.parametrize(
    ("option", "still"),
    [
        ({"branch_3d": False}, "spiral_net"),
        ({"shared_layer": True}, "transformer.layer_attention.1"),
    ],
)
def test_what_an_ablation_leaves_out_gets_no_gradient(option: dict, still: str, context: Callable[..., Context]):
    stage = STAGES["identity"](context("identity", options=option))
    stage.objective(stage.batch(0, stage.context.generator(0)))["loss"].backward()
    gradients = [p.grad for n, p in stage.objective.named_parameters() if n.startswith(still)]
    assert gradients
    assert all(g is None for g in gradients)


@pytest.mark.parametrize(
    "option",
    [
        {"multi_view": False},
        {"branch_2d": False},
        {"first_frame": True},
        {"first_frame": True, "multi_view": False},
        {"first_frame": True, "identity_dropout": 0.5},
    ],
)
def test_other_ablations_train(option: dict, context: Callable[..., Context]):
    stage = STAGES["identity"](context("identity", options=option))
    loss = stage.objective(stage.batch(0, stage.context.generator(0)))["loss"]
    loss.backward()
    assert loss.isfinite()
    assert stage.objective.transformer.layer_attention[0].to_out.weight.grad.abs().sum() > 0


def test_unfreezing_reaches_the_parameters_it_names(context: Callable[..., Context]):
    stage = STAGES["identity"](context("identity", options={"unfreeze": ["transformer_blocks.0.norm1"]}))
    stage.objective(stage.batch(0, stage.context.generator(0)))["loss"].backward()
    dit = stage.objective.transformer
    assert dit.transformer_blocks[0].norm1.linear.weight.grad is not None
    assert dit.transformer_blocks[1].norm1.linear.weight.grad is None


def test_exports_load_as_the_published_layout(context: Callable[..., Context]):
    stage = STAGES["identity"](context("identity"))
    stage.export()
    folder = stage.context.model_folder
    config = weights.read_config(folder / "transformer")
    published = checkpoint.split_published(weights.read(folder / "transformer"))
    tower = image_tower.ImageTower.from_state_dict(weights.read(folder / "face_encoder" / "image_tower.safetensors"))
    mesh = mesh_hierarchy.load(folder / "face_model" / "topology.safetensors")
    encoder = identity.build_encoder(published, tower, mesh, config).float()
    dit = from_published(config, published).float()
    assert len(dit.layer_attention) == config["num_layers"]
    assert encoder.face_tokens(torch.rand(1, 64, 64, 3)).shape == (1, config["face_queries"], 32)


def test_the_schedule_is_the_release_s():
    noising = diffusion.Noising(torch.device("cpu"))
    clean, noise = torch.randn(2, 1, 1, 1, 1), torch.randn(2, 1, 1, 1, 1)
    noisy, velocity = noising(clean, noise, torch.tensor([999, 0]))
    torch.testing.assert_close(noisy[0], noise[0])  # zero terminal SNR: nothing of the clip is left
    torch.testing.assert_close(velocity[0], -clean[0])
    assert (noisy[1] - clean[1]).abs() < 0.2


def test_times_are_spread_evenly():
    times = diffusion.stratified_timesteps(10, torch.Generator().manual_seed(0)).sort().values
    assert (times // 100).tolist() == list(range(10))


def test_all_times_can_count_alike():
    losses = [0.15, 0.1, 0.1, 0.2, 0.6]
    counts = diffusion.loss_weights(losses, 1.0)
    assert counts.shape == (1000,)
    assert counts.mean() == pytest.approx(1)
    weighed = [counts[t].item() * loss for t, loss in zip(diffusion.FIXED_TIMESTEPS, losses, strict=True)]
    assert weighed == pytest.approx([weighed[0]] * 5)
    assert counts[0] == counts[100]
    assert counts[999] == counts[900]
    assert counts[600].item() == pytest.approx(2 / (1 / counts[500].item() + 1 / counts[700].item()))
    assert torch.equal(diffusion.loss_weights(losses, 0.0), torch.ones(1000))
    half = diffusion.loss_weights(losses, 0.5)
    assert (half[500] / half[900]).item() == pytest.approx((0.6 / 0.1) ** 0.5)


def test_samples_count_as_often_as_told():
    error, face = torch.randn(2, 3, 16, 4, 4), torch.rand(2, 3, 4, 4)
    each = [diffusion.weighted_mse(error[[i]], face, 1.0) for i in range(2)]
    both = diffusion.weighted_mse(error, face, 1.0, torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(both, (0.5 * each[0] + 2 * each[1]) / 2)


@pytest.mark.parametrize("high_noise_fraction", [0.0, 0.2, 0.5, 0.7, 1.0])
def test_the_share_of_noisy_times_can_be_chosen(high_noise_fraction: float):
    times = diffusion.stratified_timesteps(100, torch.Generator().manual_seed(0), high_noise_fraction)
    assert abs((times >= 500).float().mean() - high_noise_fraction) <= 0.02
    assert times.min() >= 0
    assert times.max() < 1000


def test_the_pool_is_the_same_however_it_was_filled(pools: tuple[Pool, Pool]):
    again = Pool(pools[0].settings, TRAIN, 0, pools[0].device)
    again.restore(1)
    assert torch.equal(again.frames, pools[0].frames)
    assert torch.equal(again.caption, pools[0].caption)
    assert again.clips == 5
    assert set(again.owner.tolist()) == {0, 1, 2, 3}


def test_people_can_be_photographed_alone(pools: tuple[Pool, Pool]):
    photographed = Pool(replace(pools[0].settings, with_video=0), TRAIN, 0, torch.device("cpu"))
    photographed.prefill(4)
    assert (photographed.people, photographed.clips) == (4, 0)
    assert torch.equal(photographed.stills, pools[0].stills)
    assert torch.equal(photographed.shape, pools[0].shape)


def test_stages_share_a_pool_where_they_ask_for_the_same_people(tmp_path: Path, pools: tuple[Pool, Pool]):
    run, sizes = Run(tmp_path, tiny=True), pools[0].settings
    first = run._rendered(settings.Settings("base", options.BaseOptions(), pool=sizes))
    later = replace(sizes, prefill=1, refresh_every=2, share=0.5)
    assert run._rendered(settings.Settings("identity", options.IdentityOptions(), pool=later)) is first
    others = run._rendered(settings.Settings("identity", options.IdentityOptions(), pool=sizes, seed=5))
    assert others[0].start != first[0].start  # another seed: other people
    photographed = run._rendered(settings.Settings("face", options.FaceOptions(), pool=replace(sizes, with_video=0)))
    assert photographed is not first
    assert all(pool.clips == 0 for pool in photographed)  # the people to validate on are photographed alone, too
    assert photographed[1].people == 4


def test_the_mean_tells_nothing_of_shapes_and_the_truth_all():
    draw = torch.Generator().manual_seed(0)
    true, basis = torch.randn(20, 100, generator=draw), torch.randn(7, 3, 100, generator=draw)
    gram = face_truth.vertex_gram(basis)
    assert face_truth.variance_explained(true, true, gram) == 1
    assert face_truth.variance_explained(true.mean(0).expand_as(true), true, gram) == pytest.approx(0, abs=1e-5)
    half = (true + true.mean(0)) / 2
    assert face_truth.variance_explained(half, true, gram) == pytest.approx(0.75, abs=1e-5)


def test_axis_angle_is_the_rotation_of_the_pose():
    from fantasyid_core.reconstruction.flame import axis_angle_to_matrix
    from fantasyid_lab.people.head import rotation

    turns = torch.tensor([[30.0, -10, 5], [0, 0, 0], [-60, 20, 15]])
    torch.testing.assert_close(axis_angle_to_matrix(face_truth.axis_angle(turns)), rotation(turns), atol=1e-4, rtol=0)


def test_the_camera_puts_the_face_model_where_the_photo_shows_it(pools: tuple[Pool, Pool]):
    from fantasyid_core.reconstruction.deca import project
    from fantasyid_lab.people.head import load as load_head

    pool, head = pools[0], load_head()
    model = nano.build(sizes=nano.TINY)
    shape, expression, pose = pool.shape, pool.still_expression[:, 0], pool.still_pose[:, 0]
    camera = face_truth.Camera(model.face, pool.device).fit(
        shape, expression, pose, pool.still_landmarks[:, 0], pool.settings.still_size
    )
    posed = model.face.decode(shape, expression, torch.cat([face_truth.axis_angle(pose), torch.zeros(4, 3)], 1))
    at = torch.cdist(model.face.template, head.template[head.landmarks]).amin(1) < 1e-6
    which = torch.cdist(model.face.template[at], head.template[head.landmarks]).argmin(1)
    projected = project(posed, camera)[:, at, :2] * pool.settings.still_size / 224 - 0.5
    assert int(at.sum()) > 5
    error = (projected - pool.still_landmarks[:, 0][:, which]).norm(dim=-1)
    # a weak perspective, and a neck that takes its part of the turn
    assert error.mean() < 0.06 * pool.settings.still_size


def test_a_wrong_key_is_named(tmp_path: Path):
    file = tmp_path / "x.toml"
    file.write_text('stage = "base"\nbatchsize = 3\n')
    with pytest.raises(TrainingError, match="unknown key 'batchsize'"):
        settings.read(file)
    assert settings.read(settings.HERE / "base.toml", ["batch=3", "pool.capacity=7"]).pool.capacity == 7


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_refuses_an_option_that_it_does_not_know(stage: str):
    file = settings.HERE / f"{stage}.toml"
    known = ", ".join(sorted(vars(settings.read(file).options)))
    with pytest.raises(TrainingError, match=f"options.* unknown key 'multiview'; there are: {known}"):
        settings.read(file, ["options.multiview=false"])


@pytest.mark.parametrize(
    ("stage", "old", "now"),
    [("identity", "options.late=0.5", "high_noise_fraction"), ("base", "pool.holds=8", "capacity")],
)
def test_the_old_name_of_a_key_leads_to_the_new_one(stage: str, old: str, now: str):
    with pytest.raises(TrainingError, match=f"is called '{now}' now"):
        settings.read(settings.HERE / f"{stage}.toml", [old])


def test_the_old_name_of_a_stage_leads_to_the_new_one(tmp_path: Path, capsys: pytest.CaptureFixture):
    file = tmp_path / "judge.toml"
    file.write_text('stage = "judge"\n')
    with pytest.raises(TrainingError, match="called 'attributes' now"):
        settings.read(file)
    assert command.main(["all", "--out", str(tmp_path), "--set", "judge.minutes=1"]) == 1
    assert "called 'attributes' now" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["judge", "--out", str(tmp_path)])
    assert "called 'attributes' now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "change", "expected"),
    [
        ("identity", "options.multi_view=no", "'multi_view' must be true or false; got 'no'"),
        ("identity", "options.multi_view=1", "'multi_view' must be true or false; got 1"),
        ("identity", "options.unfreeze=blocks", "'unfreeze' must be a list of values, each a text; got 'blocks'"),
        ("base", "options.pictures_batch=2.5", "'pictures_batch' must be a whole number; got 2.5"),
        ("base", "options.face_weight=true", "'face_weight' must be a number; got True"),
        ("base", "options=3", "options.* is not a table of keys: 3"),
        ("face", "seed.people=3", "'seed.people=3' sets a key of 'seed', which face.toml has as"),
        ("face", "pool.people=many", "'people' must be a whole number; got 'many'"),
        ("face", "betas=[0.9]", "'betas' must be a list of 2 values, each a number"),
    ],
)
def test_a_value_of_another_type_is_refused(stage: str, change: str, expected: str):
    with pytest.raises(TrainingError, match=expected):
        settings.read(settings.HERE / f"{stage}.toml", [change])


def test_numbers_and_lists_are_read_as_the_options_have_them():
    read = settings.read(settings.HERE / "identity.toml", ["options.face_weight=6", 'options.unfreeze=["norm"]'])
    assert isinstance(read.options.face_weight, float)
    assert read.options.unfreeze == ("norm",)
    assert read.betas == (0.9, 0.99)


def test_the_command_trains_one_stage(tmp_path: Path, capsys: pytest.CaptureFixture):
    small = ["steps=1", "pool.size=32"]
    changes = [word for change in small for word in ("--set", change)]
    assert command.main(["base", "--out", str(tmp_path), "--tiny", *changes]) == 0
    assert json.loads((tmp_path / "done.json").read_text()) == ["base"]
    assert command.main(["base", "--out", str(tmp_path), "--tiny", "--set", "nonsense"]) == 1
    assert "not of the form" in capsys.readouterr().err


def test_photos_are_pictures_to_train_on(context: Callable[..., Context]):
    decoded = context("base")
    STAGES["base"](decoded)  # gives the pool latents
    pool, people, photos = decoded.pool, torch.tensor([1, 3]), torch.tensor([0, 1])
    drawn = pool.pictures(people, photos)
    frames = pool._as_pictures(pool.stills[people, photos])
    torch.testing.assert_close(drawn.latents, encode(decoded.model.vae.eval(), frames), atol=1e-5, rtol=1e-4)
    assert drawn.face_mask.shape == (2, 1, *drawn.latents.shape[-2:])
    caption = still(person(TRAIN[1]), 0).caption
    assert torch.equal(pool.caption[drawn.captions[0]].long(), byte_tokens.encode_batch([caption])[0])


def test_photos_as_pictures_are_framed_as_clips_are():
    small = settings.PoolSettings(capacity=12, people=12, with_video=12, stills=2, frames=1, size=48, still_size=64)
    pool = Pool(small, TRAIN, 0, torch.device("cpu"))
    pool.prefill(12)
    clips, pictures = pool.landmarks[:, 0], pool.picture_landmarks.flatten(0, 1)
    assert spread(pictures) == pytest.approx(spread(clips), rel=0.1)
    assert (pictures.mean((0, 1)) - clips.mean((0, 1))).abs().max() < 2.5
    offsets = [
        middle_of(mask) - x.mean(1)
        for mask, x in ((pool.face_mask[:, 0], clips), (pool.picture_mask[:, 0], pictures[::2]))
    ]
    assert (offsets[0].mean(0) - offsets[1].mean(0)).abs().max() < 1


def middle_of(masks: torch.Tensor) -> torch.Tensor:
    """Where masks (B, H / 4, W / 4) have their middles, (B, 2) px."""
    y, x = torch.meshgrid(*(torch.arange(float(n)) for n in masks.shape[1:]), indexing="ij")
    return torch.stack([(masks * at).sum((1, 2)) / masks.sum((1, 2)) for at in (x, y)], 1) * 4 + 1.5


def spread(landmarks: torch.Tensor) -> float:
    """How large faces are: the root mean square of the landmarks' distances from their middle, px."""
    return (landmarks - landmarks.mean(1, keepdim=True)).square().sum(-1).mean().sqrt().item()


@pytest.mark.parametrize("name", ["base", "identity"])
def test_a_share_of_the_steps_trains_on_photos(name: str, context: Callable[..., Context]):
    changes = {"pictures": 0.5, "pictures_batch": 2} | ({"landmark_weight": 0.1} if name == "base" else {})
    stage = STAGES[name](context(name, options=changes))
    for step, frames, count in ((0, 3, 4), (1, 1, 8)):
        batch = stage.batch(step, stage.context.generator(step))
        assert batch.latents.shape[:2] == (count, frames)
        losses = stage.objective(batch)
        losses["loss"].backward()
        assert torch.isfinite(losses["loss"])


@pytest.mark.parametrize("trained", [True, False])
def test_the_text_encoder_is_trained_with_the_dit_or_left_as_it_is(trained: bool, context: Callable[..., Context]):
    stage = STAGES["base"](context("base", options={"train_text": trained}))
    stage.objective(stage.batch(0, stage.context.generator(0)))["loss"].backward()
    learns = {name.split(".")[0] for name, p in stage.objective.named_parameters() if p.grad is not None}
    assert ("text" in learns) == trained
    assert "transformer" in learns


@pytest.mark.parametrize("dropped", [0.0, 1.0])
def test_a_frozen_text_encoder_has_read_the_captions_before(dropped: float, context: Callable[..., Context]):
    stage = STAGES["base"](context("base", options={"train_text": False, "text_dropout": dropped}))
    text = stage.batch(0, stage.context.generator(0)).text
    ids = stage.empty_ids if dropped else stage.context.pool.caption.long()
    with torch.no_grad():
        known = stage.context.model.text(input_ids=ids).last_hidden_state
    assert (text[:, None] - known).abs().amax((2, 3)).amin(1).max() < 1e-5


@pytest.mark.parametrize("name", ["base", "identity"])
def test_a_stage_takes_steps_with_muon(name: str, context: Callable[..., Context], accelerator: Accelerator):
    stage = STAGES[name](context(name, steps=2, muon=True))
    numbers = loop.train(stage, accelerator, resume=False)
    assert torch.isfinite(torch.tensor(list(numbers.values()))).all()
    goes_on = STAGES[name](context(name, steps=3, muon=True))
    loop.train(goes_on, accelerator, resume=True)  # both optimisers' states are in the checkpoint
    lines = (stage.context.out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(x)["step"] for x in lines if "losses" in x] == [1, 2, 3]


def test_the_share_of_single_frames_is_spread_evenly():
    assert [diffusion.on_pictures(step, 0.4) for step in range(5)] == [False, False, True, False, True]
    assert not any(diffusion.on_pictures(step, 0.0) for step in range(100))
    assert all(diffusion.on_pictures(step, 1.0) for step in range(100))


def test_a_decoder_can_be_trained_alone(context: Callable[..., Context], accelerator: Accelerator):
    stage = STAGES["vae"](context("vae", steps=2, ema=0.0, options={"encoder": False}))
    model, clips = stage.context.model, stage.context.pool.frames[:2]
    with torch.no_grad():
        latents, decoded = encode(model.vae, clips), decode(model.vae, encode(model.vae, clips))
    loop.train(stage, accelerator, resume=False)
    written = nano.read(stage.context.model_folder).vae
    with torch.no_grad():
        torch.testing.assert_close(encode(written, clips), latents, atol=2e-2, rtol=2e-2)  # written in float16
        assert (decode(written, latents) - decoded).abs().mean() > 1e-4


def test_a_look_that_takes_longer_than_the_time_between_looks_leaves_room_for_steps(
    context: Callable[..., Context], accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
):
    stage = STAGES["base"](context("base", steps=7, validate_minutes=2.5 / 60))
    clock, looks, draw = [0.0], [], stage.batch
    monkeypatch.setattr(rank_sync, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def batch(step: int, generator: torch.Generator) -> BaseBatch:
        clock[0] += 1
        return draw(step, generator)

    def validate() -> dict[str, float]:
        clock[0] += 100
        looks.append(1)
        return {"loss": 0.0}

    monkeypatch.setattr(stage, "batch", batch)
    monkeypatch.setattr(stage, "validate", validate)
    monkeypatch.setattr(stage, "sample_grid", lambda: None)
    loop.train(stage, accelerator, resume=False)
    assert len(looks) == 3  # after the third step, the sixth, and at the end
