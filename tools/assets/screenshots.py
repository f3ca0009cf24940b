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
    from playwright.sync_api import Browser, Page

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


def show_readme(browser: "Browser", page: ComfyPage, folder: Path) -> None:
    """README as a forge shows it, by the page's own renderer."""
    text = (ROOT / "README.md").read_text("utf-8")
    html = page.page.evaluate("(text) => app.extensionManager.renderMarkdownToHtml(text)", text)
    file = folder / "readme.html"
    file.write_text(f'<meta charset="utf-8"><base href="{ROOT.as_uri()}/"><style>{STYLE}</style>{html}', "utf-8")
    shown = browser.new_page(viewport={"width": 1100, "height": 760})
    shown.goto(file.as_uri())
    shown.wait_for_function("() => [...document.images].every((image) => image.complete)")
    save(shown, "readme")
    shown.close()


def show_run(server: ComfyServer, page: ComfyPage, name: str, widgets: dict) -> None:
    """The first workflow after its run, whole."""
    page.drop(FIRST)
    page.page.evaluate("() => { app.canvas.min_font_size_for_lod = 0; }")  # words at any size
    page.show_all()
    page.set_widgets(widgets)
    run = server.wait(page.run(), timeout=3600)
    if run.error:
        raise SystemExit(run.error.message)
    page.wait_for_video(timeout=60)
    page.settle()
    save(page.page, name)


def show_error(server: ComfyServer, page: ComfyPage, name: str, widgets: dict, words: str, photo: str = "") -> None:
    """What the page says of the first workflow with other `widgets`, or with a picture of the input folder."""
    page.drop(FIRST)
    if photo:
        page.replace("FantasyIDExamplePhoto", "LoadImage")
    page.set_widgets(widgets | ({"image": photo} if photo else {}))
    page.show_all()
    server.wait(page.run(), timeout=3600)
    page.wait_for_words(words)
    save(page.page, name)


def main() -> None:
    """See `--help`."""
    parser = argparse.ArgumentParser(prog="python -m tools.assets.screenshots", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a shorter, rougher video")
    widgets = QUICK if parser.parse_args().quick else {}
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
        for vue, name in ((False, "classic_nodes"), (True, "vue_nodes")):
            page = ComfyPage(browser, server.url, vue_nodes=vue)
            # Of what is cached from the run before, nothing is said under the nodes.
            page.page.request.post(f"{server.url}/free", data={"unload_models": True, "free_memory": True})
            show_run(server, page, name, widgets)
            if vue:
                show_readme(browser, page, Path(folder))
                show_error(server, page, "missing_model", {"model_name": "FantasyID"}, "The model 'FantasyID' is not")
                show_error(server, page, "no_face", {}, "No face was found", photo)
                show_error(server, page, "no_such_face", {"select": "index", "index": 5}, "Face 5 was asked for")
                page.drop(FIRST)
                page.template_cards("ComfyUI-FantasyID")
                page.page.locator("[data-testid^='template-workflow-']").first.scroll_into_view_if_needed()
                save(page.page, "templates")
            page.close()


if __name__ == "__main__":
    main()
