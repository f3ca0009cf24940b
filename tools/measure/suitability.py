"""How often the verdict on a reference photo is right, as a Markdown table: `python -m tools.measure.suitability`.

On the first frames of ComfyUI's workflow templates whose largest face looks ahead, labelled by eye (27 November 2026)
as an open face of a person, a covered one (sunglasses, visors, hats, flowers, hands), or no person's (drawn, sculpted,
animal). Many are made by a model. The thresholds were chosen on the same pictures.
"""

import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fantasyid_core.detection.faces import detect
from fantasyid_core.images import load_photo
from fantasyid_core.views.suitability import GOOD, UNUSABLE, USABLE, assess, openness

LABELS = Path(__file__).parent / "labelled_references.json"
PACKAGES = tuple(f"comfyui_workflow_templates_media_{name}" for name in ("api", "image", "other", "video", "assets_01"))


def files(names: list[str], folders: list[Path]) -> Iterator[Path]:
    """Where the named pictures lie: in these folders, or in the installed packages."""
    specs = [] if folders else [importlib.util.find_spec(package) for package in PACKAGES]
    folders = folders or [Path(spec.origin).parent for spec in specs if spec and spec.origin]
    for name in names:
        if path := next((path for folder in folders for path in folder.rglob(name)), None):
            yield path


def main() -> None:
    print("| face | pictures | no face found | " + " | ".join((GOOD, USABLE, UNUSABLE)) + " | hardly a person's |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for label, names in json.loads(LABELS.read_text("utf-8")).items():
        counts, closed, count = Counter(), 0, 0
        for path in files(names, list(map(Path, sys.argv[1:]))):
            count += 1
            if not (faces := detect(load_photo(path))):
                counts["none"] += 1
                continue
            counts[assess(faces[0]).word] += 1
            closed += float(openness(faces[:1])[0]) < -2
        numbers = (count, counts["none"], counts[GOOD], counts[USABLE], counts[UNUSABLE], closed)
        print(f"| {label} | " + " | ".join(map(str, numbers)) + " |", flush=True)


if __name__ == "__main__":
    main()
