"""`python -m tools.assets.draw_thumbnails`: the pictures by which the page's template browser shows the workflows.

A face, or several, as large as they fit: what the workflow begins with, from `web/photos/`.
"""

import av
from PIL import Image, ImageDraw

from ..environment import ROOT
from .picture_layout import font
from .shipped_workflows import Workflow, workflows

PHOTOS, WORKFLOWS = ROOT / "web" / "photos", ROOT / "workflows"
SIZE = (512, 320)  # px, as the cards are


def photo(person: str) -> Image.Image:
    """The photo of an example person."""
    return Image.open(PHOTOS / f"{person}.jpg").convert("RGB")


def frames(person: str, count: int) -> list[Image.Image]:
    """`count` frames of an example person's video, evenly spread."""
    with av.open(str(PHOTOS / f"{person}.mp4")) as container:
        decoded = [frame.to_image() for frame in container.decode(video=0)]
    return [decoded[round(i * (len(decoded) - 1) / (count - 1))] for i in range(count)]


def beside(pictures: list[Image.Image]) -> Image.Image:
    """Pictures side by side, the middle of each."""
    canvas = Image.new("RGB", SIZE)
    width = SIZE[0] / len(pictures)
    for place, picture in enumerate(pictures):
        scale = max(width / picture.width, SIZE[1] / picture.height)
        left, top = (picture.width - width / scale) / 2, (picture.height - SIZE[1] / scale) / 2
        box = (left, top, picture.width - left, picture.height - top)
        start, end = round(place * width), round((place + 1) * width)
        canvas.paste(picture.resize((end - start, SIZE[1]), box=box), (start, 0))
    return canvas


def thumbnail(people: list[str], video_frames: int) -> Image.Image:
    """The people that a workflow begins with; `video_frames` frames of the last one's video if it takes that."""
    photos = [photo(person) for person in people]
    return beside(
        [*photos[: len(photos) - bool(video_frames)], *(frames(people[-1], video_frames) if video_frames else [])]
    )


def label(workflow: Workflow) -> str:
    """What a card says over its picture, if anything: where to begin, and what a model weighs."""
    if workflow.name.startswith("01"):
        return "start here"
    large = any(node.type == "FantasyIDDownload" for node in workflow.nodes.values())
    return "needs 14 GB" if large else ""


def labelled(picture: Image.Image, words: str) -> Image.Image:
    """The picture with `words` in its lower left corner."""
    if words:
        draw, corner = ImageDraw.Draw(picture), (16, picture.height - 16)
        left, top, right, bottom = draw.textbbox(corner, words, font(30), anchor="ls")
        draw.rounded_rectangle((left - 10, top - 8, right + 10, bottom + 8), 8, fill="#202020")
        draw.text(corner, words, "white", font(30), anchor="ls")
    return picture


def main() -> None:
    """Write `workflows/NAME.jpg` for every workflow."""
    for workflow in workflows():
        people = [node.widgets["person"] for node in workflow.nodes.values() if "person" in node.widgets]
        video_frames = 3 if any(node.type == "GetVideoComponents" for node in workflow.nodes.values()) else 0
        file = WORKFLOWS / f"{workflow.name}.jpg"
        labelled(thumbnail(people, video_frames), label(workflow)).save(file, quality=88, optimize=True)


if __name__ == "__main__":
    main()
