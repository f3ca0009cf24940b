"""A new user: ComfyUI as installed, nothing in its folders, the first workflow dropped on the page."""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tools.browser import ComfyPage, find_browser, open_browser
from tools.comfy_host import ComfyServer
from tools.environment import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FIRST = next((ROOT / "workflows").glob("01*.json"))
SMALL = {"settings": "as set here", "width": 96, "height": 96, "frames": 5, "steps": 1}
VUE_SINCE = (1, 40)  # before it Vue-rendered nodes were an experiment
FRONTEND = tuple(int(part) for part in version("comfyui-frontend-package").split("."))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A ComfyUI of which nobody has used anything yet."""
    with ComfyServer(tmp_path_factory.mktemp("fresh"), ["--preview-method", "auto"]) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    executable = find_browser()
    if executable is None:
        pytest.skip("no Chromium, Chrome or Edge is installed")
    with open_browser(executable) as browser:
        yield browser


@pytest.fixture(scope="module", params=["classic nodes", "Vue nodes"])
def page(fresh: ComfyServer, browser: "Browser", request: pytest.FixtureRequest) -> Iterator[ComfyPage]:
    vue = request.param == "Vue nodes"
    if vue and FRONTEND < VUE_SINCE:
        pytest.skip("this page's Vue-rendered nodes were an experiment")
    page = ComfyPage(browser, fresh.url, vue_nodes=vue)
    yield page
    page.close()


def pictures(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.suffix in {".jpg", ".png", ".webp"}]


def test_dropped_run_watched_cancelled_and_run_again(fresh: ComfyServer, page: ComfyPage):
    assert pictures(fresh.base / "input") == []
    page.drop(FIRST)
    assert page.red() == []
    assert page.messages() == []
    assert page.pictures("FantasyIDExamplePhoto") == ["Amara.jpg"]
    page.set_widgets(SMALL)
    run = fresh.wait(page.run(), timeout=300)
    assert run.error is None
    assert [file["filename"].split("_")[0] for file in run.files if file["type"] == "output"] == ["video"]
    page.look_at("SaveVideo")
    assert page.wait_for_video(timeout=60)["width"] == 96
    page.set_widgets({"steps": 900})
    long = page.run()
    page.cancel_while_sampling()
    assert fresh.wait(long, timeout=120).status == "interrupted"
    page.set_widgets({"steps": 2})
    assert fresh.wait(page.run(), timeout=300).status == "success"


def test_another_person_is_another_picture(page: ComfyPage):
    page.drop(FIRST)
    page.set_widgets({"person": "Rosa"})
    assert page.pictures("FantasyIDExamplePhoto") == ["Rosa.jpg"]


def test_a_missing_model_is_said_where_the_artist_looks(fresh: ComfyServer, page: ComfyPage):
    page.drop(FIRST)
    page.set_widgets(SMALL | {"model_name": "FantasyID"})
    run = fresh.wait(page.run(), timeout=120)
    assert run.status == "error"
    words = page.wait_for_words("The model 'FantasyID' is not there")
    assert "FantasyID Download Model" in words


@pytest.fixture
def landscape(fresh: ComfyServer, tmp_path: Path) -> Iterator[str]:
    """A picture of hills under a sky, in the input folder for as long as the test takes."""
    file = tmp_path / "hills.png"
    picture = Image.linear_gradient("L").resize((640, 480))
    Image.merge("RGB", [picture.point(lambda v, c=c: v * c // 4) for c in (1, 2, 3)]).save(file)
    name = fresh.upload_image(file)
    yield name
    (fresh.base / "input" / name).unlink()


def test_a_landscape_is_said_to_have_no_face(fresh: ComfyServer, page: ComfyPage, landscape: str):
    page.drop(FIRST)
    page.replace("FantasyIDExamplePhoto", "LoadImage")
    page.set_widgets(SMALL | {"image": landscape})
    run = fresh.wait(page.run(), timeout=120)
    assert run.error.node_type == "FantasyIDDetectFace"
    page.wait_for_words("No face was found in the photo")


def test_help_is_beside_the_node(page: ComfyPage):
    page.drop(FIRST)
    assert "six people who do not exist" in page.help_of("FantasyIDExamplePhoto")


def test_templates_are_shown_by_number_and_face(fresh: ComfyServer, page: ComfyPage):
    names = sorted(file.stem for file in (ROOT / "workflows").glob("*.json"))
    assert sorted(fresh.workflow_templates()["ComfyUI-FantasyID"]) == names
    cards = page.template_cards("ComfyUI-FantasyID")
    assert sorted(cards) == names
    assert all(width > 0 for width in cards.values())
