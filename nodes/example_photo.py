"""A photo to begin with: people who do not exist, by name."""

import json
from pathlib import Path

import numpy as np
import torch
from comfy_api.latest import InputImpl, io

from ..fantasyid_core.errors import FantasyIDError
from .host.base import FantasyIDNode, listed

PHOTOS = Path(__file__).resolve().parents[1] / "web" / "photos"  # where the page can show them too


class FantasyIDExamplePhoto(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDExamplePhoto",
            display_name="FantasyID Example Photo",
            **listed("2 photo", "portrait", "person", "sample image", "test face"),
            description=(
                "A photo to begin with: six people who do not exist, drawn by the pack. FantasyID-nano has learned "
                "from such people, though never from these. For your own photo put Load Image in its place; for your "
                "own video, Load Video."
            ),
            inputs=[
                io.Combo.Input("person", options=people(), tooltip="Whose photo; the node shows it."),
            ],
            outputs=[
                io.Image.Output(display_name="photo", tooltip="The photo, 512 × 512, for FantasyID Detect Face."),
                io.Video.Output(
                    display_name="video",
                    tooltip="A video of the same person who turns the head (Elena talks to the camera), 320 × 320, 25 "
                    "frames: for Get Video Components and from there for FantasyID Multi-View.",
                ),
                io.String.Output(
                    display_name="who",
                    tooltip="The person in words, such as 'A woman with long red hair', for 'who' of FantasyID Text "
                    "Encode: a prompt that tells of other hair makes another person.",
                ),
            ],
        )

    @classmethod
    def run(cls, person: str) -> io.NodeOutput:
        photo = read_photo(person)
        words = json.loads((PHOTOS / "people.json").read_text("utf-8"))[person]
        return io.NodeOutput(photo, InputImpl.VideoFromFile(str(PHOTOS / f"{person}.mp4")), words)


def people() -> list[str]:
    """Names of those of whom the pack has a photo."""
    return sorted(file.stem for file in PHOTOS.glob("*.jpg"))


def read_photo(person: str) -> torch.Tensor:
    """(1, 512, 512, 3) float32, 0…1.

    Raises:
        FantasyIDError: there is no photo of a person of this name.
    """
    if person not in people():
        there = ", ".join(people())
        raise FantasyIDError(
            f"There is no photo of '{person}' in {PHOTOS}; choose one of: {there}."
            if there
            else f"The folder {PHOTOS} has no photos, which come with the pack: reinstall the pack."
        )
    from PIL import Image

    with Image.open(PHOTOS / f"{person}.jpg") as photo:
        return torch.from_numpy(np.asarray(photo.convert("RGB"), np.float32))[None] / 255


NODES = [FantasyIDExamplePhoto]
