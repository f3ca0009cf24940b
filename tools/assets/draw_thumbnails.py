"""`python -m tools.assets.draw_thumbnails`: the pictures by which the page's template browser shows the workflows.

A face, or several, as large as they fit: what the workflow begins with, from `web/photos/`.
"""

import av
from PIL import Image

from ..environment import ROOT
from .shipped_workflows import workflows

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


def main() -> None:
    """Write `workflows/NAME.jpg` for every workflow."""
    for workflow in workflows():
        people = [node.widgets["person"] for node in workflow.nodes.values() if "person" in node.widgets]
        video_frames = 3 if any(node.type == "GetVideoComponents" for node in workflow.nodes.values()) else 0
        file = WORKFLOWS / f"{workflow.name}.jpg"
        thumbnail(people, video_frames).save(file, quality=88, optimize=True)


if __name__ == "__main__":
    main()
