"""The README's moving picture: `python -m tools.assets.first_look FILE.webp [--people N] [--first N]`, minutes.

Each column is a person never trained on: the photo that went in, and below it what FantasyID-nano makes of it, in the
order of the test people's numbers, none left out.
"""

import argparse
import sys
from pathlib import Path

import torch

from fantasyid_core.images import resize, to_pil
from fantasyid_lab import nano
from fantasyid_lab.evaluation.generate import Generator, Request, reference
from fantasyid_lab.people.clip import still
from fantasyid_lab.people.person import TEST, person
from fantasyid_lab.people.render import render

SIZE, PHOTO = 160, 224
ACTIONS = (
    "smiles broadly before a blue wall",
    "talks to the camera before a green wall",
    "lifts the brows and smiles before an orange wall",
    "speaks and nods before a grey wall",
)


def main() -> int:
    """Make the picture; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.assets.first_look", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="an animated .webp")
    parser.add_argument("--people", type=int, default=6)
    parser.add_argument("--first", type=int, default=0, help="number of the first test person")
    arguments = parser.parse_args()
    generator = Generator(nano.read(nano.SHIPPED))
    columns = []
    for number in range(arguments.first, arguments.first + arguments.people):
        one = person(TEST[number])
        photo = render([still(one, 1)], PHOTO).frames[0, 0].cpu()
        who = "woman" if one.sex == "female" else "man"
        prompt = f"A {who} in a white shirt {ACTIONS[number % len(ACTIONS)]}."
        request = Request(prompt, generator.identity(reference(photo)), seed=number)
        video = generator.videos([request], steps=20, guidance=4.0, guide_identity=True)[0]
        shown = resize(photo[None], SIZE, SIZE)[0].expand(len(video), -1, -1, -1)
        columns.append(torch.cat([shown, video.float() / 255], dim=1))
        print(f"{number}: {prompt}", file=sys.stderr, flush=True)
    frames = [to_pil(frame) for frame in torch.cat(columns, dim=2)]
    there_and_back = frames + frames[-2:0:-1]
    there_and_back[0].save(
        arguments.file, save_all=True, append_images=there_and_back[1:], duration=125, loop=0, quality=75
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
