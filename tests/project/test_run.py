"""The demo command: which model it takes, and what it leaves. (`run.py test` is what runs this.)"""

import contextlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import av
import pytest

from tools.comfy_host import ComfyServer
from tools.environment import ROOT, SetupError, venv_folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """`run.py` with another folder as its checkout, and no ComfyUI of the artist's."""
    spec = importlib.util.spec_from_file_location("run", ROOT / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "DEMO_OUTPUT", tmp_path / "output")
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return module


def put(place: Path, *names: str) -> Path:
    """Models in `place`, by their folders alone."""
    for name in names:
        (place / "models" / "fantasyid" / name / "transformer").mkdir(parents=True)
    return place


def test_the_demo_takes_the_model_of_the_pack(command: ModuleType, tmp_path: Path):
    assert command._demo_model(tmp_path) == ("FantasyID-nano", [])


def test_a_published_model_that_is_there_is_taken_instead(command: ModuleType, tmp_path: Path):
    put(tmp_path, "FantasyID", "FantasyID-nano", "stand-in")
    assert command._demo_model(tmp_path) == ("FantasyID", [])


def test_every_comfyui_has_an_environment_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert venv_folder() == ROOT / ".venv"
    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").touch()
    (tmp_path / "comfyui_version.py").write_text('# made by a tool\n__version__ = "0.33.1"\n', "utf-8")
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert venv_folder() == ROOT / ".venv-comfyui-0.33.1"
    (tmp_path / "comfyui_version.py").unlink()
    with pytest.raises(SetupError, match="does not say which ComfyUI it is"):
        venv_folder()


@pytest.mark.parametrize(("there", "taken"), [(["5B"], "5B"), (["FantasyID-nano"], "FantasyID-nano")])
def test_models_of_the_artist_s_comfyui_are_found(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: list[str], taken: str
):
    own = put(tmp_path / "ComfyUI", *there)
    monkeypatch.setenv("COMFYUI_PATH", str(own))
    model, (option, config) = command._demo_model(tmp_path / "demo")
    assert (model, option) == (taken, "--extra-model-paths-config")
    assert json.loads(Path(config).read_text("utf-8"))["comfyui"]["base_path"] == str(own)


def test_the_demo_makes_a_video_from_a_photo(command: ModuleType, comfy: ComfyServer, monkeypatch, tmp_path, capsys):
    """All of it, the model of the pack at its own size, but in fewer steps and on the tests' server."""
    workflow = (ROOT / "workflows" / "01 First video.json").read_text("utf-8")
    assert '[42, "fixed", 20, ' in workflow
    (tmp_path / "01 First video.json").write_text(
        workflow.replace('[42, "fixed", 20, ', '[42, "fixed", 4, ').replace("default for this model", "as set here"),
        "utf-8",
    )
    monkeypatch.setattr(command, "WORKFLOWS", tmp_path)
    monkeypatch.setattr("tools.comfy_host.ComfyServer", lambda base, arguments: contextlib.nullcontext(comfy))
    assert command._demo(command.DEMO_PHOTO, "A woman turns her head to the right.") == 0
    made = {file.stem: file for file in command.DEMO_OUTPUT.iterdir()}
    assert set(made) == {"video", "face", "mesh", "contact_sheet"}
    with av.open(made["video"]) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert [frame.shape for frame in frames] == [(160, 160, 3)] * 25
    assert "turns her head to the right" in json.dumps(comfy.history())
    said = capsys.readouterr().out
    assert "not a likeness engine" in said
    assert said.splitlines()[-1] == str(made["video"])

    (tmp_path / "01 First video.json").write_text('{"nodes": [{"id": 1, "type": "Gone"}], "links": []}', "utf-8")
    assert command._demo(command.DEMO_PHOTO, None) == 1
    assert "Gone (node 1) is unknown" in capsys.readouterr().out
    assert not command.DEMO_OUTPUT.exists(), "the video of the run before was left"


def test_the_demo_says_what_is_wrong_with_a_photo(
    command: ModuleType, comfy: ComfyServer, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr("tools.comfy_host.ComfyServer", lambda base, arguments: contextlib.nullcontext(comfy))
    assert command._demo(tmp_path / "nobody.png", None) == 1
    assert f"there is no photo at {tmp_path / 'nobody.png'}" in capsys.readouterr().out
