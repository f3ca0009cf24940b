"""`python -m tools.assets.screenshots`: pictures of ComfyUI's page for the documents, into `docs/pictures/`.

The first workflow after its run, in both ways of drawing nodes; the template browser; three errors as an artist meets
them. To be run with the newest ComfyUI at hand (`COMFYUI_PATH`); `--quick` makes a shorter, rougher video.
"""

import argparse
import io
import tempfile
from pathlib import Path

from PIL import Image

from ..browser import ComfyPage, find_browser, open_browser
from ..comfy_host import ComfyServer
from ..environment import ROOT

PICTURES = ROOT / "docs" / "pictures"
FIRST = next((ROOT / "workflows").glob("01*.json"))
QUICK = {"settings": "as set here", "steps": 2, "frames": 5}
WIDTH, LIMIT = 1400, 200_000  # px, bytes


def save(page: ComfyPage, name: str) -> None:
    """Write what the page shows as `page_NAME.jpg`, as good as the limit of bytes allows."""
    picture = Image.open(io.BytesIO(page.page.screenshot())).convert("RGB")
    picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    for quality in range(92, 40, -4):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= LIMIT:
            break
    (PICTURES / f"page_{name}.jpg").write_bytes(file.getvalue())


def show_run(server: ComfyServer, page: ComfyPage, name: str, widgets: dict) -> None:
    """The first workflow after its run, whole."""
    page.drop(FIRST)
    page.show_all()
    page.set_widgets(widgets)
    run = server.wait(page.run(), timeout=3600)
    if run.error:
        raise SystemExit(run.error.message)
    page.wait_for_video(timeout=60)
    page.settle()
    save(page, name)


def show_error(server: ComfyServer, page: ComfyPage, name: str, widgets: dict, words: str, photo: str = "") -> None:
    """What the page says of the first workflow with other `widgets`, or with a picture of the input folder."""
    page.drop(FIRST)
    if photo:
        page.replace("FantasyIDExamplePhoto", "LoadImage")
    page.set_widgets(widgets | ({"image": photo} if photo else {}))
    page.show_all()
    server.wait(page.run(), timeout=3600)
    page.wait_for_words(words)
    save(page, name)


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
            show_run(server, page, name, widgets)
            if vue:
                show_error(server, page, "missing_model", {"model_name": "FantasyID"}, "The model 'FantasyID' is not")
                show_error(server, page, "no_face", {}, "No face was found", photo)
                show_error(server, page, "no_such_face", {"select": "index", "index": 5}, "Face 5 was asked for")
                page.drop(FIRST)
                page.template_cards("ComfyUI-FantasyID")
                page.page.mouse.wheel(0, -10_000)
                save(page, "templates")
            page.close()


if __name__ == "__main__":
    main()
