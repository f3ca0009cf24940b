"""`python -m tools.assets.screenshots`: pictures of ComfyUI's page for the documents, into `docs/pictures/`.

README's first screen; the first workflow after its run, in both ways of drawing nodes; the template browser; three
errors as an artist meets them. To be run with the newest ComfyUI at hand (`COMFYUI_PATH`); `--quick` makes a shorter,
rougher video.
"""

import argparse
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..browser import ComfyPage, find_browser, open_browser
from ..comfy_host import ComfyServer
from ..environment import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Page

PICTURES = ROOT / "docs" / "pictures"
FIRST = next((ROOT / "workflows").glob("01*.json"))
QUICK = {"settings": "as set here", "steps": 2, "frames": 5}
STYLE = """
  body { max-width: 880px; margin: 24px auto; font: 16px/1.5 sans-serif; color: #1f2328; }
  img { max-width: 100%; } h1, h2 { border-bottom: 1px solid #d1d9e0; padding-bottom: 6px; }
  pre, code { background: #f0f1f3; } pre { padding: 12px; } table { border-collapse: collapse; }
  td, th { border: 1px solid #d1d9e0; padding: 4px 10px; } a { color: #0969da; }
"""
WIDTH, LIMIT = 1400, 200_000  # px, bytes


def save(page: "Page", name: str) -> None:
    """Write what the page shows as `page_NAME.jpg`, as good as the limit of bytes allows."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    file = PICTURES / f"page_{name}.jpg"
    for quality in range(92, 40, -4):
        picture.save(file, quality=quality, optimize=True)
        if file.stat().st_size <= LIMIT:
            break


def show_readme(page: ComfyPage, folder: Path) -> "Page":
    """README as a forge shows it, by ComfyUI's own renderer."""
    text = (ROOT / "README.md").read_text("utf-8")
    html = page.page.evaluate("(text) => app.extensionManager.renderMarkdownToHtml(text)", text)
    file = folder / "readme.html"
    file.write_text(f'<meta charset="utf-8"><base href="{ROOT.as_uri()}/"><style>{STYLE}</style>{html}', "utf-8")
    shown = page.page.context.browser.new_page(viewport={"width": 1100, "height": 760})
    shown.goto(file.as_uri())
    shown.wait_for_function("() => [...document.images].every((image) => image.complete)")
    return shown


def show_run(server: ComfyServer, page: ComfyPage, widgets: dict) -> "Page":
    """The first workflow after its run, whole."""
    # Of what is cached from the run before, nothing is said under the nodes.
    page.page.request.post(f"{server.url}/free", data={"unload_models": True, "free_memory": True})
    page.drop(FIRST)
    page.page.evaluate("() => { app.canvas.min_font_size_for_lod = 0; }")  # words at any size
    page.show_all()
    page.set_widgets(widgets)
    run = server.wait(page.run(), timeout=3600)
    if run.error:
        raise SystemExit(run.error.message)
    page.wait_for_video(timeout=60)
    page.settle()
    return page.page


def show_error(server: ComfyServer, page: ComfyPage, widgets: dict, text: str, photo: str = "") -> "Page":
    """What the page says of the first workflow with other `widgets`, or with a picture of the input folder."""
    page.drop(FIRST)
    if photo:
        page.replace("FantasyIDExamplePhoto", "LoadImage")
    page.set_widgets(widgets | ({"image": photo} if photo else {}))
    page.show_all()
    server.wait(page.run(), timeout=3600)
    page.wait_for_text(text)
    return page.page


def show_templates(page: ComfyPage) -> "Page":
    """The cards of the workflows, from the first on."""
    page.drop(FIRST)
    page.template_cards("ComfyUI-FantasyID")
    cards = page.page.locator("[data-testid^='template-workflow-']")
    cards.first.scroll_into_view_if_needed()
    for card in cards.all()[:8]:
        card.locator("img").first.wait_for()
    return page.page


def main() -> None:
    """See `--help`."""
    parser = argparse.ArgumentParser(prog="python -m tools.assets.screenshots", description=__doc__)
    parser.add_argument("names", nargs="*", help="which, such as templates; default: all")
    parser.add_argument("--quick", action="store_true", help="a shorter, rougher video")
    arguments = parser.parse_args()
    widgets = QUICK if arguments.quick else {}
    executable = find_browser()
    if executable is None:
        raise SystemExit("No Chromium, Chrome or Edge is installed.")
    with (
        tempfile.TemporaryDirectory() as folder,
        ComfyServer(Path(folder)) as server,
        open_browser(executable) as browser,
    ):
        hills = Path(folder) / "hills.png"
        Image.linear_gradient("L").resize((640, 480)).convert("RGB").save(hills)
        photo = server.upload_image(hills)
        missing, sixth = {"model_name": "FantasyID"}, {"select": "index", "index": 5}
        classic = {"classic_nodes": lambda page: show_run(server, page, widgets)}
        vue = {
            "vue_nodes": lambda page: show_run(server, page, widgets),
            "readme": lambda page: show_readme(page, Path(folder)),
            "missing_model": lambda page: show_error(server, page, missing, "the model 'FantasyID' is not"),
            "no_face": lambda page: show_error(server, page, {}, "No face was found", photo),
            "no_such_face": lambda page: show_error(server, page, sixth, "Face 5 was asked for"),
            "templates": show_templates,
        }
        for shots, vue_nodes in ((classic, False), (vue, True)):
            wanted = [name for name in shots if name in (arguments.names or shots)]
            if not wanted:
                continue
            page = ComfyPage(browser, server.url, vue_nodes)
            for name in wanted:
                save(shots[name](page), name)
            page.close()


if __name__ == "__main__":
    main()
