"""A new user: ComfyUI as installed, nothing in its folders, the first workflow dropped on the page."""

import importlib.util
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tools.browser import ComfyPage
from tools.comfy_host import ComfyServer
from tools.environment import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FIRST = next((ROOT / "workflows").glob("01*.json"))
SMALL = {"settings": "as set here", "width": 96, "height": 96, "frames": 5, "steps": 1}
READABLE = 0.58  # scale below which the page draws no words in classic nodes
VUE_SINCE = (1, 40)  # before it Vue-rendered nodes were an experiment
FRONTEND = tuple(int(part) for part in version("comfyui-frontend-package").split("."))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A ComfyUI of which nobody has used anything yet."""
    with ComfyServer(tmp_path_factory.mktemp("fresh"), ["--preview-method", "auto"]) as server:
        yield server


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
    assert not page.page.evaluate("() => app.canvas.low_quality"), "too small for the page to draw what nodes say"
    assert page.pictures("FantasyIDExamplePhoto") == ["Rosa.jpg"]
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


def test_another_person_is_another_picture_and_another_prompt(fresh: ComfyServer, page: ComfyPage):
    page.drop(FIRST)
    page.set_widgets(SMALL | {"person": "Amara"})
    assert page.pictures("FantasyIDExamplePhoto") == ["Amara.jpg"]
    page.wait_for_text("A young woman with long black hair")
    assert fresh.wait(page.run(), timeout=300).error is None
    page.look_at("FantasyIDTextEncode")
    page.wait_for_text("A young woman with long black hair in a white shirt")


def test_a_missing_model_is_said_where_the_artist_looks(fresh: ComfyServer, page: ComfyPage):
    page.drop(FIRST)
    page.set_widgets(SMALL | {"model_name": "FantasyID"})
    run = fresh.wait(page.run(), timeout=120)
    assert run.status == "error"
    page.look_at(run.error.node_type)
    page.wait_for_text("Run 'FantasyID Download Model' first")
    assert page.reads_without_scrolling("Run 'FantasyID Download Model' first (if it is bypassed: select it, Ctrl+B")


def template(*names: str) -> Path:
    """The first of these pictures that ComfyUI's workflow templates have here: each release brings others."""
    packages = (f"comfyui_workflow_templates_media_{part}" for part in ("api", "image", "other", "video", "assets_01"))
    specs = [spec for package in packages if (spec := importlib.util.find_spec(package))]
    folders = [Path(folder) for spec in specs for folder in spec.submodule_search_locations]
    found = (file for name in names for folder in folders for file in folder.rglob(name))
    if (file := next(found, None)) is None:
        pytest.skip(f"none of ComfyUI's workflow templates that are installed has {' or '.join(names)}")
    return file


def landscape() -> Image.Image:
    """Hills under a sky."""
    sky = Image.linear_gradient("L").resize((640, 480))
    return Image.merge("RGB", [sky.point(lambda v, c=c: v * c // 4) for c in (1, 2, 3)])


def dog() -> Image.Image:
    """A puppy's photo; in older releases toy animals."""
    return Image.open(template("video_ltx2_i2v_lora-1.webp", "api_bfl_flux_1_kontext_max_image-2.webp"))


def sunglasses() -> Image.Image:
    """A man with black glasses; in older releases a woman with a visor."""
    return Image.open(template("gsl_creator_2-1.webp", "hidream_e1_full-2.webp"))


@pytest.fixture
def own_photo(fresh: ComfyServer, page: ComfyPage, tmp_path: Path) -> Iterator[Callable[[Image.Image], None]]:
    """Function that puts a picture of the user's own into the first workflow on the page."""
    names = []

    def put(picture: Image.Image) -> None:
        picture.convert("RGB").save(tmp_path / "own.png")
        names.append(fresh.upload_image(tmp_path / "own.png"))
        page.drop(FIRST)
        page.replace("FantasyIDExamplePhoto", "LoadImage")
        page.set_widgets(SMALL | {"image": names[-1]})

    yield put
    for name in names:
        (fresh.base / "input" / name).unlink(missing_ok=True)


def test_a_landscape_is_said_to_have_no_face(fresh: ComfyServer, page: ComfyPage, own_photo: Callable):
    own_photo(landscape())
    run = fresh.wait(page.run(), timeout=120)
    assert run.error.node_type == "FantasyIDDetectFace"
    page.wait_for_text("No face was found in the photo")


@pytest.mark.parametrize(
    ("picture", "verdict"),
    [
        (dog, "like an open face of a person"),  # hardly, or not plainly
        (sunglasses, "dark glasses or deep shadow hide the eyes"),
    ],
    ids=["dog", "sunglasses"],
)
def test_what_will_not_do_is_said_under_the_node(
    fresh: ComfyServer, page: ComfyPage, own_photo: Callable, picture: Callable, verdict: str
):
    own_photo(picture())
    assert fresh.wait(page.run(), timeout=120).status == "success"
    page.look_at("FantasyIDDetectFace")
    page.wait_for_text(verdict)


def test_help_is_beside_the_node(page: ComfyPage):
    page.drop(FIRST)
    assert "six people who do not exist" in page.help_of("FantasyIDExamplePhoto").text


@pytest.mark.parametrize("kind", ["FantasyIDDetectFace", "FantasyIDSampler"])
def test_help_has_a_picture_and_fits_into_its_panel(page: ComfyPage, kind: str):
    page.page.evaluate("(kind) => { app.graph.clear(); app.graph.add(LiteGraph.createNode(kind)); }", kind)
    shown = page.help_of(kind)
    assert shown.pictures == [[f"{kind}.webp", 640]]
    assert shown.too_wide == []


def test_a_template_opens_large_enough_to_read(page: ComfyPage):
    """The template browser fits all nodes into the window (0.33), or takes the place that the file names (0.3.75)."""
    page.open_template("ComfyUI-FantasyID", FIRST)
    scale, (x0, y0, width, height) = page.page.evaluate("() => [app.canvas.ds.scale, [...app.canvas.visible_area]]")
    assert scale >= READABLE
    for title, (left, top, right, bottom) in page.boxes()["nodes"]:
        assert x0 <= left < right <= x0 + width, title
        assert y0 <= top < bottom <= y0 + height, title


def test_templates_are_shown_by_number_and_face(fresh: ComfyServer, page: ComfyPage):
    names = sorted(file.stem for file in (ROOT / "workflows").glob("*.json"))
    assert sorted(fresh.workflow_templates()["ComfyUI-FantasyID"]) == names
    cards = page.template_cards("ComfyUI-FantasyID")
    assert sorted(cards) == names
    assert all(width > 0 for width in cards.values())
