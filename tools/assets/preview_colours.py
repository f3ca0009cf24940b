"""Fit the colours of live previews to frames of synthetic people: `python -m tools.assets.preview_colours FOLDER`.

Writes them into the folder's `vae/config.json`.
"""

import json
import sys
from pathlib import Path

import torch

from fantasyid_core.video import autoencoder
from fantasyid_lab import nano
from fantasyid_lab.people.clip import clip
from fantasyid_lab.people.person import VALIDATION, person
from fantasyid_lab.people.render import render

PEOPLE = 24


@torch.no_grad()
def fit(folder: Path) -> None:
    """Add `latent_rgb_factors` and their bias to the configuration of the autoencoder in a model's folder."""
    vae = nano.read(folder).vae
    people = [person(seed) for seed in VALIDATION[:PEOPLE]]
    frames = render([clip(who, seed=0, frames=9) for who in people], nano.HEIGHT).frames
    pixels = frames.permute(0, 4, 1, 2, 3) * 2 - 1
    latents = torch.cat([vae.encode(part).mean for part in pixels.split(4)]) * vae.config.scaling_factor
    file = folder / "vae" / "config.json"
    config = json.loads(file.read_text("utf-8")) | autoencoder.preview_colours(latents, frames)
    file.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    fit(Path(sys.argv[1]))
