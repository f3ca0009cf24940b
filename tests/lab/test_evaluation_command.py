"""`python -m fantasyid_lab.evaluation` from cases to table, on a tiny untrained model and an untrained judge."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fantasyid_core.errors import FaceNotFoundError, FantasyIDError
from fantasyid_core.fusion.identity import Identity
from fantasyid_core.meters.attribute_regressor import AttributeReading, AttributeRegressor
from fantasyid_lab import nano
from fantasyid_lab.evaluation import acting, cases, generate, measure, saved_frames
from fantasyid_lab.evaluation.__main__ import main
from fantasyid_lab.evaluation.generate import Generator, Request
from fantasyid_lab.evaluation.modes import EXACT, parse
from fantasyid_lab.people.colours import COLOURS


@pytest.fixture(scope="module")
def folder(standin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = nano.write(nano.build(standin / "face_model", nano.TINY), tmp_path_factory.mktemp("models") / "tiny")
    torch.manual_seed(0)
    AttributeRegressor(len(COLOURS)).save(folder / "judge")
    return folder


@pytest.fixture(scope="module")
def generator(folder: Path) -> Generator:
    model = nano.read(folder)
    noise = torch.Generator().manual_seed(0)
    for parameter in model.transformer.parameters():  # an untrained model adds nothing, whoever and whatever is asked
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1, generator=noise)
    return Generator(model)


@pytest.fixture(scope="module")
def identities(generator: Generator) -> list[Identity]:
    photos = cases.show([case.reference for case in cases.draw(2)]).frames[:, 0]
    return [generator.identity(generate.reference(photo)) for photo in photos]


def latents(generator: Generator, requests: list[Request]) -> torch.Tensor:
    return generator.latents(requests, 1, 2, 6.0, "ddim", (32, 32))


def test_every_video_follows_its_own_identity_prompt_and_seed(generator: Generator, identities: list[Identity]):
    a, b = identities
    together = latents(generator, [Request("one", a, 1), Request("two", b, 2)])
    alone = latents(generator, [Request("two", b, 2)])
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=1e-4)
    for other in (Request("three", b, 2), Request("two", a, 2), Request("two", b, 3), Request("two", b, 2, 0.0)):
        assert (latents(generator, [other]) - alone).abs().max() > 1e-4


def test_several_photos_of_a_person_make_one_identity(generator: Generator):
    case = cases.draw(2)[0]
    clips = cases.photos(case, 3)
    assert clips[0] is case.reference
    assert len({clip.caption for clip in clips}) == 3
    assert {clip.person.seed for clip in clips} == {case.target.person.seed}
    faces = [generate.reference(photo) for photo in cases.show(clips).frames[:, 0]]
    alone = [generator.identity(face) for face in faces]
    together = generator.identity(faces[0], faces[1:])
    torch.testing.assert_close(together.face_tokens, torch.stack([one.face_tokens for one in alone]).mean(0))
    assert torch.equal(together.image, alone[0].image)
    assert not torch.equal(together.vertex_tokens, alone[0].vertex_tokens)


@pytest.mark.parametrize("first_frame", [False, True])
def test_at_strength_0_the_identity_does_not_matter(
    first_frame: bool, generator: Generator, identities: list[Identity], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(generator.model.config, "first_frame_condition", first_frame)
    both = [[Request("one", who, 1, 0.0), Request("one", who, 1)] for who in identities]
    a, b = (latents(generator, requests) for requests in both)
    assert torch.equal(a[0], b[0])
    assert not torch.equal(a[1], b[1])


@pytest.mark.parametrize("first_frame", [False, True])
def test_guidance_can_lead_to_the_identity_as_to_the_prompt(
    first_frame: bool, generator: Generator, identities: list[Identity], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(generator.model.config, "first_frame_condition", first_frame)

    def one_step(prompt: str, strength: float, guidance: float, guide_identity: bool = False) -> torch.Tensor:
        request = Request(prompt, identities[0], 1, strength)
        return generator.latents([request], 1, 1, guidance, "ddim", (32, 32), EXACT, guide_identity)

    with_both, with_none = one_step("one", 1.0, 1.0), one_step("", 0.0, 1.0)
    torch.testing.assert_close(one_step("one", 1.0, 6.0, True), with_none + 6 * (with_both - with_none))
    assert not torch.allclose(one_step("one", 1.0, 6.0, False), one_step("one", 1.0, 6.0, True))


def test_a_video_has_the_size_asked_for(generator: Generator, identities: list[Identity]):
    videos = generator.videos([Request("one", identities[0], 1)], frames=5, steps=1, size=(32, 48))
    assert videos.shape == (1, 5, 32, 48, 3)
    assert videos.dtype == torch.uint8


def test_an_acting_identity_moves_and_its_last_moment_holds(generator: Generator):
    [case, _] = acting.cast(cases.draw(2, frames=9))
    photo = cases.show([cases.draw(2)[0].reference]).frames[0, 0]
    performance = acting.performance_of(case.performed, generator.model.face)
    acted = generator.identity(generate.reference(photo), performance=performance)
    assert acted.frame_tokens.shape == (3, *acted.vertex_tokens.shape)
    assert (acted.frame_tokens[0] != acted.frame_tokens[2]).any()

    def sampled(*who: Identity) -> torch.Tensor:
        return generator.latents([Request("one", one, 1) for one in who], 17, 1, 1.0, "ddim", (32, 32))

    rests = replace(acted, frame_tokens=acted.vertex_tokens[None])
    [constant] = sampled(replace(acted, frame_tokens=None))
    resting, acts = sampled(rests, acted)
    torch.testing.assert_close(resting, constant, atol=1e-5, rtol=1e-4)
    held = replace(acted, frame_tokens=acted.frame_tokens[[0, 1, 2, 2, 2]])
    torch.testing.assert_close(sampled(held)[0], acts, atol=1e-5, rtol=1e-4)
    assert (acts - constant).abs().max() > 1e-3


def test_correlation_is_with_the_other_s_performance():
    drawn = cases.draw(3, frames=9)
    performed = acting.cast(drawn)
    assert not any(
        word in case.prompt for case in performed for word in ("turn", "smil", "still", "look", "talk", "nod")
    )
    assert performed[2].performed.person is drawn[2].target.person
    readings = [
        AttributeReading(None, torch.from_numpy(case.target.pose), torch.from_numpy(case.target.expression), None, None)
        for case in drawn
    ]
    exact = acting.correlations(performed, [readings[1], readings[2], readings[0]])
    assert exact == pytest.approx(dict.fromkeys(acting.CURVES, 1.0))
    assert max(acting.correlations(performed, readings).values()) < 0.9


def test_a_reference_without_a_face_is_refused():
    with pytest.raises(FaceNotFoundError):
        generate.reference(torch.zeros(160, 160, 3))


def test_the_command_generates_keeps_judges_and_draws(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip("dlib")
    arguments = [
        "--people",
        "2",
        "--controls",
        "0",
        "--frames",
        "1",
        "--steps",
        "1",
        "--dtype",
        "bf16",
        "--acting",
        "--model",
        str(folder),
    ]
    frames, pictures = tmp_path / "frames", tmp_path / "pictures"
    assert (
        main([*arguments, "--device", "cpu", "--no-judging", "--save-frames", str(frames), "--pictures", str(pictures)])
        == 0
    )
    assert (pictures / "unseen_people.jpg").stat().st_size > 10_000
    judged = ["--load-frames", str(frames), "--judge", str(folder / "judge"), "--json", str(tmp_path / "table.json")]
    assert main(judged) == 0
    report = json.loads((tmp_path / "table.json").read_text())
    assert report["settings"]["people"] == 2
    assert len({row["key"] for row in report["rows"]}) == len(report["rows"])
    rows = {row["measure"]: row for row in report["rows"]}
    assert rows["re-identification, top-1 of 2"]["truth"] == 1  # true renders are found, whatever the model
    assert rows["measured frames with a face"]["value"] == 0  # an untrained model shows none
    assert rows["re-identification, top-1 of 2"]["met"] is False
    assert rows["face motion, by that of true clips"]["met"] is False  # flicker is no motion
    acting = {row["key"].removeprefix("acting_"): row for row in report["rows"] if row["key"].startswith("acting_")}
    assert acting.keys() == {"yaw", "pitch", "roll", "jaw", "smile", "reidentification"}
    assert acting["yaw"]["met"] is False
    assert acting["reidentification"]["bar"] == "≥ 0.00, as without"
    assert "| re-identification, top-1 of 2 |" in capsys.readouterr().out


def test_kept_frames_come_back_nearly_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(saved_frames, "FILE_BYTES", 30_000)  # several files
    videos = cases.as_bytes(cases.show([case.target for case in cases.draw(2, frames=5)]).frames)
    settings = saved_frames.Settings(2, 0, 1, 5, 20, 6.0, "ddim", "nano", "fp32", "cpu")
    saved_frames.save(tmp_path, settings, measure.Outputs(videos, videos[:1], videos[1:]))
    again, outputs = saved_frames.load(tmp_path)
    assert again == settings
    assert outputs.prompted.shape == videos.shape
    assert (outputs.prompted.float() - videos.float()).abs().mean() < 2
    assert (outputs.wrong.float() - videos[1:].float()).abs().mean() < 2
    files = sorted(tmp_path.glob("frames-*.npz"))
    assert len(files) > 1
    files[-1].unlink()
    with pytest.raises(FantasyIDError, match="frames"):
        saved_frames.load(tmp_path)


def test_modes_stand_side_by_side_with_what_they_cost(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """The exact one is what errors are measured from; nothing that is skipped is exact."""
    pytest.importorskip("dlib")
    options = ["--people", "2", "--frames", "1", "--steps", "2", "--device", "cpu", "--judge", str(folder / "judge")]
    arguments = [*options, "--model", str(folder), "--modes", "fp8,cache=1-0-1", "--save-frames", str(tmp_path)]
    assert main([*arguments, "--no-judging"]) == 0
    assert main([*options, "--load-frames", str(tmp_path), "--json", str(tmp_path / "table.json")]) == 0
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line[0].strip("| ") for line in lines] == ["", "---", "true renders", "exact", "fp8", "cache=1-0-1"]
    assert lines[0][-2] == "latents' error"
    reports = json.loads((tmp_path / "table.json").read_text())
    errors = {report["variant"]: report["settings"]["error"] for report in reports}
    assert errors["exact"] == 0
    assert all(report["settings"]["seconds"] > 0 for report in reports)


def test_a_mode_strays_from_the_exact_latents(generator: Generator, identities: list[Identity]):
    request, size = [Request("one", identities[0], 1)], (32, 32)
    exact, *others = (
        generator.sample(request, frames=1, steps=6, size=size, mode=mode) for mode in parse("exact,fp8,cache=1-0-1")
    )
    for other in others:
        assert 0 < (other - exact).norm() / exact.norm() < 0.5
    nothing_skipped = generator.sample(request, frames=1, steps=6, size=size, mode=parse("cache=0")[1])
    torch.testing.assert_close(nothing_skipped, exact)


def test_modes_are_named_as_they_are_asked_for():
    exact, both = parse("cache=0.2-0.3+fp8")
    assert exact.cache is None
    assert not exact.fp8
    assert (both.name, both.cache.threshold, both.cache.start, both.fp8) == ("cache=0.2-0.3+fp8", 0.2, 0.3, True)
    for wrong in ("fast", "cache=much", "cache=1-0-1-2-3"):
        with pytest.raises(FantasyIDError):
            parse(wrong)


def test_wrong_arguments_say_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["--people", "1"]) == 1
    assert "at least 2" in capsys.readouterr().err
    assert main(["--load-frames", str(tmp_path)]) == 1
    assert "settings.json" in capsys.readouterr().err


def test_chance_is_what_guessing_finds_at_most():
    assert measure.chance_limit(100) == pytest.approx(0.03)
    assert measure.chance_limit(8) == pytest.approx(3 / 8)
    assert math.isclose(measure.chance_limit(1), 1)
