"""The identity stage on a folder of real clips, as it trains the 5B: its files' names, its layout, small widths."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("av")
pytest.importorskip("sentencepiece")

import av
import sentencepiece
from safetensors.torch import save_file

from fantasyid_core.errors import TrainingError, WeightsMissingError
from fantasyid_core.fusion import checkpoint
from fantasyid_core.io import weights
from fantasyid_lab import nano
from fantasyid_lab.people.clip import clip
from fantasyid_lab.people.person import TRAIN, person
from fantasyid_lab.people.render import render
from fantasyid_lab.training import __main__ as command
from fantasyid_lab.training import settings
from fantasyid_lab.training.clip_folder import FolderSource
from fantasyid_lab.training.identity import IdentityStage
from fantasyid_lab.training.prepared_clip import PreparedClip, choose_window, prepare_clip
from fantasyid_lab.training.stage import Context
from fantasyid_lab.training.vocabulary import tokenizer
from tools.environment import ROOT

CONFIG = settings.HERE / "identity_5b.toml"
SIZES = {"sample_width": 12, "sample_height": 8, "sample_frames": 9, "use_learned_positional_embeddings": False}
FAULTS = ROOT / "tests" / "fixtures" / "faults"
FRAMES = 17  # eight more than the model's window


def write_clip(path: Path, frames: torch.Tensor, fps: int = 8) -> None:
    """Frames (T, H, W, 3) uint8 → an .mp4 file."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *frames.shape[1:3], "yuv420p", 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of synthetic people with their captions, and one that shows nobody."""
    folder = tmp_path_factory.mktemp("clips")
    drawn = [clip(person(TRAIN[i]), 0, FRAMES) for i in range(4)]
    frames = (render(drawn, size=96).frames * 255).round().to(torch.uint8)
    for i, (one, pixels) in enumerate(zip(drawn, frames, strict=True)):
        write_clip(folder / f"{i}.mp4", pixels)
        (folder / f"{i}.txt").write_text(one.caption, "utf-8")
    write_clip(folder / "1b nobody.mp4", torch.full_like(frames[0], 128))
    (folder / "1b nobody.txt").write_text("a grey wall", "utf-8")
    return folder


@pytest.fixture(scope="module")
def release(standin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for 9 frames of 96 × 64 under the release's own file names, with a small vocabulary."""
    folder = tmp_path_factory.mktemp("release") / "FantasyID"
    shutil.copytree(standin, folder)
    shutil.rmtree(folder / "transformer")
    (folder / "transformer_ema").mkdir()
    tensors = weights.read(standin / "transformer")
    tensors.pop("patch_embed.pos_embedding")
    save_file(tensors, folder / "transformer_ema" / "diffusion_pytorch_model.safetensors")
    config = weights.read_config(standin / "transformer") | SIZES
    (folder / "transformer_ema" / "config.json").write_text(json.dumps(config))
    tower, deca = folder / "face_encoder" / "image_tower.safetensors", folder / "face_model" / "deca_model.safetensors"
    torch.save(
        {f"visual.{k}": x for k, x in weights.read(tower).items()}, tower.with_name("EVA02_CLIP_L_336_psz14_s6B.pt")
    )
    torch.save({"E_flame": weights.read(deca)}, deca.with_suffix(".tar"))
    tower.unlink()
    deca.unlink()
    write_vocabulary(folder / "tokenizer")
    return folder


def write_vocabulary(folder: Path) -> None:
    """A sentencepiece model in the files of a T5 tokenizer."""
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a woman in a red shirt smiles", "a man turns the head to the left"] * 20),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))


@pytest.fixture(scope="module")
def model(release: Path) -> nano.Nano:
    return nano.read(release)


def source(folder: Path, model: nano.Nano, **options) -> FolderSource:
    stage_settings = settings.read(CONFIG)
    context = Context(stage_settings, model, None, None, out=folder, device=torch.device("cpu"), bf16=False)
    return FolderSource(context, replace(stage_settings.options, data=str(folder), **options))


@pytest.fixture(scope="module")
def read(clips: Path, model: nano.Nano) -> FolderSource:
    """The clips as a source. What is prepared of them stays in it: preparing a clip takes seconds."""
    read = source(clips, model, text_dropout=0.5)
    assert [path.stem for path in read.clips] == ["0", "1", "1b nobody"]
    assert read.clips[1] not in read._prepared  # clips are read when they are needed
    return read


def copied(clips: Path, folder: Path, *names: str) -> Path:
    """A folder with only these of the clips."""
    folder.mkdir()
    for name in names:
        for suffix in (".mp4", ".txt"):
            shutil.copy(clips / f"{name}{suffix}", folder)
    return folder


def test_the_command_trains_the_identity_modules_on_clips(release: Path, clips: Path, tmp_path: Path):
    two = copied(clips, tmp_path / "two", "0", "1")
    changes = {"steps": 3, "warmup": 1, "learning_rate": 1e-2, "log_every": 1, "options.data": str(two)}
    set_options = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    arguments = ["identity", "--config", str(CONFIG), "--out", str(tmp_path), "--start-from", str(release)]
    assert command.main([*arguments, *set_options]) == 0

    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["losses"]["loss"] for line in lines if "losses" in line]
    assert len(losses) == 3
    assert torch.tensor(losses).isfinite().all()
    assert (tmp_path / "samples" / "identity.png").is_file()

    exported = tmp_path / release.name
    assert [part.name for part in exported.iterdir()] == ["transformer"]
    finished = tmp_path / "finished"
    shutil.copytree(release, finished)
    shutil.rmtree(finished / "transformer_ema")
    shutil.copytree(exported / "transformer", finished / "transformer")
    before, after = nano.read(release), nano.read(finished)
    old, new = nano.published_tensors(before), nano.published_tensors(after)
    changed = {name for name in old if not torch.equal(old[name].half(), new[name].half())}
    assert {name.split(".")[0] for name in changed} == set(checkpoint.IDENTITY_PARTS)


def test_the_command_distils_the_release_on_clips(release: Path, clips: Path, tmp_path: Path):
    two = copied(clips, tmp_path / "two", "0", "1")
    changes = {"steps": 1, "warmup": 1, "log_every": 1, "options.steps": 2, "options.rank": 2, "options.data": str(two)}
    set_options = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    arguments = ["--config", str(CONFIG.with_name("distil_5b.toml")), "--out", str(tmp_path / "out")]
    assert command.main(["distil", *arguments, "--start-from", str(release), *set_options]) == 0
    names = weights.read(tmp_path / "out" / "FantasyID-2-steps.safetensors").keys()
    assert "transformer.transformer_blocks.0.ff.net.2.lora_B.weight" in names


def test_references_come_from_outside_the_window(read: FolderSource, model: nano.Nano):
    for path in read.clips[:2]:
        prepared_clip = read._clip(path)
        assert len(prepared_clip.window) == model.transformer.config.sample_frames
        assert prepared_clip.frames
        assert not set(prepared_clip.frames) & set(range(prepared_clip.window[0], prepared_clip.window[-1] + 1))
    one_view = replace(read.options, multi_view=False)
    inside = prepare_clip(read.clips[0], read.context, one_view, read._embed_text, read.dtype)
    assert set(inside.frames) <= set(inside.window)


def test_batches_have_the_documented_shapes_and_follow_the_generator(read: FolderSource, model: nano.Nano):
    first, again, other = (read.batch(0, 4, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    unread = copy.copy(read)
    unread._prepared = {}
    fresh = unread.batch(0, 4, torch.Generator().manual_seed(0))
    for part, its, fresh_part in ((first, again, fresh), (first.reference, again.reference, fresh.reference)):
        for name, x in part.tensors.items():
            assert torch.equal(x, its.tensors[name])
            torch.testing.assert_close(x, fresh_part.tensors[name])
    assert not torch.equal(first.latents, other.latents)
    vertices = len(model.face.template)
    assert {name: tuple(x.shape) for name, x in (first.tensors | first.reference.tensors).items()} == {
        "latents": (4, 3, 16, 8, 12),
        "face_mask": (4, 3, 8, 12),
        "text": (4, 226, model.text.config.d_model),
        "crops": (4, 512, 512, 3),
        "vertices": (4, vertices, 3),
    }
    assert 0.02 < first.face_mask.mean() < 0.7
    validation = read.validation()
    assert validation.truth.shape == (2, 1, 64, 96, 3)
    assert validation.empty_text.shape == (1, 226, model.text.config.d_model)


def test_what_cannot_be_used_leaves_the_draw(read: FolderSource, monkeypatch: pytest.MonkeyPatch):
    """Of three clips that are drawn from, the last shows nobody: the other two share the draws evenly."""
    monkeypatch.setattr(read, "_collate", lambda clips, views, text: clips)
    drawn = read.batch(0, 2000, torch.Generator().manual_seed(0))
    shares = [sum(clip is read._clip(path) for clip in drawn) / len(drawn) for path in read.clips]
    assert shares[2] == 0
    assert shares[:2] == pytest.approx([0.5, 0.5], abs=0.05)  # 0.67 and 0.33 where a neighbour stands in


def test_what_macos_leaves_beside_clips_changes_nothing(
    clips: Path, read: FolderSource, model: nano.Nano, tmp_path: Path
):
    for file in clips.iterdir():
        shutil.copy(file, tmp_path / (file.stem + file.suffix.upper()))
        (tmp_path / f"._{file.stem}{file.suffix.upper()}").write_bytes(b"\0\5\x16\7")
    found = source(tmp_path, model)
    assert [path.stem for path in found.clips] == [path.stem for path in read.clips]
    assert not found._reasons
    assert len(found.held_out) == 2


def test_clips_that_cannot_be_used_are_not_held_out_either(clips: Path, model: nano.Nano, tmp_path: Path):
    for name, new_name in (("0", "0"), ("1b nobody", "1"), ("2", "2"), ("1b nobody", "3"), ("1b nobody", "4")):
        for suffix in (".mp4", ".txt"):
            shutil.copy(clips / f"{name}{suffix}", tmp_path / f"{new_name}{suffix}")
    read = source(tmp_path, model)
    assert [path.stem for path in read.clips] == ["0", "1"]
    assert read.held_out == [read._clip(tmp_path / "2.mp4")]


def prepared(name: str, folder: Path, model: nano.Nano) -> PreparedClip:
    """A clip of `FAULTS` as the only one of a folder, always under the same name."""
    shutil.copy(FAULTS / f"{name}.mp4", folder / "0.mp4")
    shutil.copy(FAULTS / "upright.txt", folder / "0.txt")
    (prepared_clip,) = source(folder, model).held_out
    return prepared_clip


def test_a_phone_s_clip_is_prepared_as_it_is_shown(model: nano.Nano, tmp_path: Path):
    phone, upright = (prepared(name, tmp_path, model) for name in ("phone", "upright"))
    assert phone.window == upright.window
    assert (phone.middle.float() - upright.middle.float()).abs().mean() < 2  # levels; on its side 78
    difference = (phone.latents.float() - upright.latents.float()).norm() / upright.latents.float().norm()
    assert difference < 0.15, "compression: 0.08; on its side: 1.2"


def test_a_trimmed_clip_s_frames_are_those_that_are_shown(model: nano.Nano, tmp_path: Path):
    prepared_clip = prepared("trimmed", tmp_path, model)
    assert set(prepared_clip.window) | set(prepared_clip.frames) <= set(range(25))


def empty(folder: Path, clips: Path) -> None:
    """No clip."""


def no_captions(folder: Path, clips: Path) -> None:
    shutil.copy(clips / "0.mp4", folder)


def broken(folder: Path, clips: Path) -> None:
    (folder / "0.mp4").write_bytes((clips / "0.mp4").read_bytes()[:2000])
    (folder / "0.txt").write_text("a man", "utf-8")


def nobody(folder: Path, clips: Path) -> None:
    for file in clips.glob("1b*"):
        shutil.copy(file, folder)


def short(folder: Path, clips: Path) -> None:
    write_clip(folder / "0.mp4", torch.zeros(5, 32, 32, 3, dtype=torch.uint8))
    (folder / "0.txt").write_text("a man", "utf-8")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (empty, "holds no .mp4"),
        (no_captions, "0.txt is not there"),
        (broken, "cannot be read as a video"),
        (nobody, "no face is seen"),
        (short, "has 5 frames"),
    ],
)
def test_a_folder_without_a_usable_clip_says_why(spoil, reason: str, clips: Path, model: nano.Nano, tmp_path: Path):
    spoil(tmp_path, clips)
    with pytest.raises(TrainingError, match=reason) as caught:
        source(tmp_path, model)
    assert "Expected pairs of NAME.mp4" in str(caught.value)


def test_a_folder_that_is_not_there_is_named(model: nano.Nano, tmp_path: Path):
    with pytest.raises(TrainingError, match="no such folder"):
        source(tmp_path / "absent", model)


@pytest.mark.parametrize(("count", "stride", "step"), [(49, 3.75, 1), (400, 3.75, 4), (100, 3.75, 2), (60, 0.0, 1)])
def test_the_window_keeps_the_models_pace_where_the_clip_is_long_enough(count: int, stride: float, step: int):
    window = choose_window(count, 49, stride, "x")
    assert len(window) == 49
    assert window.step == step
    assert 0 <= window[0] <= window[-1] < count
    assert window == choose_window(count, 49, stride, "x")


def test_a_vocabulary_is_read_as_t5_reads_it(model: nano.Nano):
    ids = tokenizer(model)("a woman smiles")[0]
    vocabulary = sentencepiece.SentencePieceProcessor(model_file=str(model.tokenizer_folder / "spiece.model"))
    known = vocabulary.encode("a woman smiles")
    assert ids.tolist() == [*known, 1, *[0] * (225 - len(known))]


def test_a_missing_vocabulary_is_named(model: nano.Nano, tmp_path: Path):
    with pytest.raises(WeightsMissingError, match=r"spiece\.model"):
        tokenizer(replace(model, tokenizer_folder=tmp_path / "tokenizer"))


def test_all_that_a_model_lacks_is_named(release: Path, tmp_path: Path):
    folder = tmp_path / "part"
    shutil.copytree(release, folder)
    shutil.rmtree(folder / "vae")
    (folder / "face_model" / "deca_model.tar").unlink()
    with pytest.raises(WeightsMissingError, match=r"vae; .*deca_model.tar or .*deca_model.safetensors"):
        nano.read(folder)


def test_the_model_that_is_started_from_is_not_overwritten(release: Path, clips: Path, capsys: pytest.CaptureFixture):
    arguments = ["identity", "--config", str(CONFIG), "--out", str(release.parent), "--start-from", str(release)]
    assert command.main([*arguments, "--set", f"options.data={clips}"]) == 1
    assert "another --out" in capsys.readouterr().err


def test_clips_alone_are_not_enough(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    arguments = ["identity", "--config", str(CONFIG), "--out", str(tmp_path / "out"), "--set", f"options.data={clips}"]
    assert command.main(arguments) == 1
    assert "--start-from" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_in_bfloat16_what_is_trained_stays_in_float32(release: Path, clips: Path, tmp_path: Path):
    held = nano.read(release, torch.bfloat16)
    stage_settings = settings.read(CONFIG, [f"options.data={copied(clips, tmp_path / 'one', '0')}"])
    stage = IdentityStage(
        Context(stage_settings, held, None, None, out=tmp_path, device=torch.device("cpu"), bf16=True)
    )
    kinds = {p.requires_grad: p.dtype for p in stage.objective.transformer.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    assert next(held.text.parameters()).dtype == torch.bfloat16
    with stage.context.autocast():
        loss = stage.objective(stage.batch(0, stage.context.generator(0)))["loss"]
    loss.backward()
    trained = [p for p in stage.objective.parameters() if p.requires_grad]
    assert loss.isfinite()
    assert all(p.dtype == torch.float32 and p.grad is not None and p.grad.isfinite().all() for p in trained)
