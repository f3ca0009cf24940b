"""`python -m tools.assets.draw_example_photos`: photos and clips of Example Photo into `web/photos/`, and from
them the registry's icon and banner into `docs/pictures/`.

They show synthetic people of the split `TEST`: of none of them has FantasyID-nano seen anything.
"""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
from PIL import Image

from fantasyid_lab.people.clip import Clip, clip, still
from fantasyid_lab.people.person import TEST, Person, person
from fantasyid_lab.people.render import render

from ..environment import ROOT

PHOTOS, PICTURES = ROOT / "web" / "photos", ROOT / "docs" / "pictures"
PHOTO_SIZE, CLIP_SIZE = 512, 320  # px
FPS = 8
PEOPLE = {  # name → who among the people of TEST, and which photo of them
    "Amara": (51, 29),
    "Ben": (45, 3),
    "Chiyo": (31, 12),
    "Elena": (34, 40),
    "Idris": (30, 47),
    "Rosa": (53, 38),
}
FACING = {"Elena"}
"""Whose clip looks to the front; the others' turn, for views."""


def turning(who: Person, photo: Clip) -> Clip:
    """The first clip of a person that shows both sides of the head, for views; with the hair of the photo."""
    clips = (clip(who, seed) for seed in range(1000))
    found = next(found for found in clips if found.pose[:, 0].min() < -15 and found.pose[:, 0].max() > 15)
    return replace(found, scene=replace(found.scene, hair=photo.scene.hair))


def facing(who: Person, photo: Clip) -> Clip:
    """The first clip of a person that looks to the front and opens the mouth, which the small model draws well; with
    the hair of the photo.
    """
    clips = (clip(who, seed) for seed in range(1000))
    found = next(found for found in clips if abs(found.pose[:, 0]).max() < 4 and "talks" in found.caption)
    return replace(found, scene=replace(found.scene, hair=photo.scene.hair))


def frames_of(drawn: Clip, size: int) -> np.ndarray:
    """(F, size, size, 3) uint8."""
    frames = render([drawn], size=size, device="cpu").frames[0]
    return (frames * 255 + 0.5).byte().numpy()


def write_video(file: Path, frames: np.ndarray) -> None:
    """Write `frames` (F, H, W, 3) uint8 as H.264."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "24"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_emblems() -> None:
    """The registry's icon, 400 × 400, and banner, 21 : 9."""
    faces = [Image.open(PHOTOS / f"{name}.jpg") for name in PEOPLE]
    faces[0].crop((106, 40, 406, 340)).resize((400, 400)).save(PICTURES / "icon.png", optimize=True)
    width, height = 1260 // len(faces), 540
    banner = Image.new("RGB", (1260, height))
    for place, face in enumerate(faces):
        left = (face.width - face.height * width / height) / 2
        strip = face.resize((width, height), box=(left, 0, face.width - left, face.height))
        banner.paste(strip, (place * width, 0))
    banner.save(PICTURES / "banner.jpg", quality=88, optimize=True)


def main() -> None:
    """Write every photo and clip."""
    PHOTOS.mkdir(parents=True, exist_ok=True)
    for name, (number, photo) in PEOPLE.items():
        who = person(TEST[number])
        photographed = still(who, photo)
        (picture,) = frames_of(photographed, PHOTO_SIZE)
        Image.fromarray(picture).save(PHOTOS / f"{name}.jpg", quality=92, optimize=True)
        choose = facing if name in FACING else turning
        write_video(PHOTOS / f"{name}.mp4", frames_of(choose(who, photographed), CLIP_SIZE))
    write_emblems()


if __name__ == "__main__":
    main()
