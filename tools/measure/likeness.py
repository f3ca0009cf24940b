"""How well the Likeness Meter's networks tell real people apart: `python -m tools.measure.likeness FOLDER…`.

Each FOLDER has a folder per person, as dlib's `examples/johns` has (github.com/davisking/dlib), face_recognition's
`tests/test_images` can be sorted into, and every data set of faces is. The six strangers of insightface's group photo
and scikit-image's astronaut are added where they are installed. Prints a Markdown table: error rates on all pairs at
the authors' thresholds with 95 % intervals. With --out it draws the histogram of both kinds of pairs.
"""

import argparse
import importlib.util
import math
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from fantasyid_core.detection import yunet
from fantasyid_core.errors import FantasyIDError
from fantasyid_core.images import from_pil, load_photo, resize, to_pil
from fantasyid_core.meters import embedding as embeddings
from fantasyid_core.meters.embedding import DISTANCE, Embedding

ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}
_SIDE = 640


def people(folders: list[Path]) -> dict[str, list[Tensor]]:
    """Person → faces, each (photo, landmarks) of the largest face."""
    found: dict[str, list] = {}
    for person in sorted(person for folder in folders for person in folder.iterdir() if person.is_dir()):
        photos = [load_photo(file) for file in sorted(person.iterdir()) if file.suffix.lower() in ENDINGS]
        found[person.name] = [face for photo in photos for face in faces(photo)[:1]]
    if (spec := importlib.util.find_spec("insightface")) and spec.origin:
        group = load_photo(Path(spec.origin).parent / "data" / "images" / "t1.jpg")
        found |= {f"t1, {i}": [face] for i, face in enumerate(faces(group, 1280)[:6])}
    if importlib.util.find_spec("skimage"):
        import skimage.data

        found["astronaut"] = faces(torch.from_numpy(skimage.data.astronaut()).float() / 255)[:1]
    return {name: own for name, own in found.items() if own}


def faces(photo: Tensor, side: int = _SIDE) -> list[tuple[Tensor, Tensor]]:
    """Faces of a photo (H, W, 3), the largest first."""
    scale = min(1.0, side / max(photo.shape[:2]))
    photo = resize(photo, round(photo.shape[0] * scale), round(photo.shape[1] * scale))
    [found] = yunet.detect(photo[None], 0.6)
    return [(photo, found.landmarks[i]) for i in found.areas.argsort(descending=True)]


def pairs(network: Embedding, known: dict[str, list]) -> tuple[Tensor, Tensor]:
    """What the network's measure says of pairs of one person and of two."""
    names = [name for name, own in known.items() for _ in own]
    chips = torch.stack([embeddings.chip(*face, network) for own in known.values() for face in own])
    vectors = (network.features or network.vectors)(chips)
    same, different = [], []
    for a, b in combinations(range(len(names)), 2):
        (same if names[a] == names[b] else different).append(float(network.compare(vectors[a], vectors[b])))
    return torch.tensor(same), torch.tensor(different)


def interval(errors: int, count: int) -> str:
    """A rate with its 95 % interval (Wilson), as if pairs were independent, which pairs of one face are not."""
    p, z = errors / count, 1.96
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return f"{p:.1%} ({max(middle - half, 0):.1%} to {middle + half:.1%})"


def histogram(title: str, network: Embedding, same: Tensor, different: Tensor) -> Tensor:
    """(320, 640, 3) bars: green one person, red two, shares of each kind; a line at the authors' threshold."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (640, 320), (252, 252, 252))
    draw = ImageDraw.Draw(picture)
    high, bins = (1.4, 56) if network.measure == DISTANCE else (1.0, 50)
    low = 0.0 if network.measure == DISTANCE else -0.25

    def x(value: float) -> float:
        return 40 + 580 * (value - low) / (high - low)

    counts = [torch.histc(values, bins, low, high) / len(values) for values in (same, different)]
    top = max(float(count.max()) for count in counts)
    for count, colour, shift in zip(counts, ((46, 140, 62), (190, 60, 50)), (0, 5), strict=True):
        for i, share in enumerate(count.tolist()):
            left = x(low + (high - low) * i / bins) + shift
            draw.rectangle((left, 280 - 230 * share / top, left + 4, 280), fill=colour)
    line = x(network.threshold)
    draw.line((line, 40, line, 280), fill=(40, 40, 48), width=2)
    for value in torch.linspace(low, high, 8).tolist():
        draw.text((x(value) - 10, 288), f"{value:.2f}", fill=(40, 40, 48))
    draw.text((40, 8), f"{title}: green one person ({len(same)} pairs), red two ({len(different)})", fill=(40, 40, 48))
    return from_pil(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--models", type=Path, action="append", default=[], help="where embeddings' files lie")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    known, drawn = people(options.folders), []
    print(f"{len(known)} people, {sum(map(len, known.values()))} photos\n")
    print("| embedding | measure | same person | pairs of one person | taken for two | pairs of two | taken for one |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in embeddings.EMBEDDINGS:
        try:
            network = embeddings.load(name, options.models)
        except FantasyIDError as error:
            print(f"| {name} | not measured: {str(error).split('.')[0]} |")
            continue
        same, different = pairs(network, known)
        missed, wrong = int((~network.is_same(same)).sum()), int(network.is_same(different).sum())
        side = "below" if network.measure == DISTANCE else "above"
        first = f"| {name} | {network.measure} | {side} {network.threshold:g} "
        one = f"| {len(same)} | {interval(missed, len(same))} "
        print(first + one + f"| {len(different)} | {interval(wrong, len(different))} |")
        drawn.append(histogram(f"{name}, {network.measure}", network, same, different))
    if options.out and drawn:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        to_pil(torch.cat(drawn)).save(options.out)


if __name__ == "__main__":
    main()
