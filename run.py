"""The commands: `python run.py demo [--photo FILE] [--prompt TEXT]`, `test [--fast] [pytest arguments]` and `check`.

All set up everything in `.venv` themselves: Python 3.10 or newer and this checkout are enough. With COMFYUI_PATH set
to a ComfyUI of your own they use that one, in an environment beside the first: versions differ in what they require.
"""

from __future__ import annotations  # so that an old Python reaches the message about its version

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

from tools.environment import ROOT, SetupError, install, venv_folder

WORKFLOWS = ROOT / "workflows"
NANO = "FantasyID-nano"  # the model that comes with the pack
DEMO_PHOTO = ROOT / "web" / "photos" / "Rosa.jpg"  # as in the first workflow
DEMO_OUTPUT = ROOT / "output" / "demo"
DEMO_PICTURES = {  # saved beside the video: name → node and output
    "face": ("FantasyIDDetectFace", "crop"),
    "mesh": ("FantasyIDReconstruct", "preview"),
    "contact_sheet": ("FantasyIDViews", "contact_sheet"),
}
FAST = "not host and not browser and not perf and not slow"
WORKERS = ("-n", "2", "--dist", "loadfile")  # `run.py test -n 0` has pytest's own process run all, for a debugger


def main() -> int:
    """Parse the command line, set up, run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description="Try the pack in a real ComfyUI, or run its tests.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="make a video from one photo, in output/demo/")
    demo.add_argument("--photo", type=Path, default=DEMO_PHOTO, help="a photo with one face")
    demo.add_argument("--prompt", help="what the person does in the video")
    commands.add_parser(
        "test", help="run the test suite, or its --fast part; further arguments go to pytest", add_help=False
    )
    commands.add_parser("check", help="lint, formatting, imports between packages, types")
    arguments, rest = parser.parse_known_args()
    if rest and arguments.command != "test":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        place = venv_folder()
        if Path(sys.prefix).resolve() != place.resolve():
            return _again_in(place)
        install(for_tests=arguments.command != "demo", say=_say)
        if arguments.command == "check":
            from tools import check

            return check.main(_say)
        if arguments.command == "test":
            if "--fast" in rest:
                rest = ["-m", FAST, *(argument for argument in rest if argument != "--fast")]
            return subprocess.call([sys.executable, "-m", "pytest", *WORKERS, *rest], cwd=ROOT)
        return _demo(arguments.photo, arguments.prompt)
    except SetupError as error:
        _say(f"Error: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


def _again_in(place: Path) -> int:
    """Run this same command line with the Python of a virtual environment, made first if it is absent or broken."""
    if sys.version_info < (3, 10):  # noqa: UP036
        raise SetupError(f"Python 3.10 to 3.13 is needed; this is {sys.version.split()[0]}.")
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    try:
        usable = subprocess.call([python, "-c", "import pip"], stderr=subprocess.DEVNULL) == 0
    except OSError:
        usable = False
    if not usable:
        _say(f"Making {place} …")
        try:
            venv.create(place, clear=True, with_pip=True, symlinks=os.name != "nt")
        except (OSError, subprocess.CalledProcessError) as error:
            raise SetupError(
                f"Could not make {place}: {error}. On Debian and Ubuntu the package python3-venv is needed."
            ) from error
    return subprocess.call([python, __file__, *sys.argv[1:]])


def _demo(photo: Path, prompt: str | None) -> int:
    """Run the model's workflow through the API of a real server and collect what it saved."""
    from tools.comfy_host import ComfyServer, ServerError
    from tools.workflow import to_graph

    if not photo.is_file():
        _say(f"Error: there is no photo at {photo}.")
        return 1
    shutil.rmtree(DEMO_OUTPUT, ignore_errors=True)  # else a run that fails would leave the one before's video
    base = ROOT / ".work" / "demo"
    model, server_arguments = _demo_model(base)
    workflow = WORKFLOWS / ("01 First video.json" if model == NANO else "07 Published model.json")
    server_arguments.append("--use-pytorch-cross-attention")  # on a CPU a third faster than the host's choice there
    began = time.monotonic()
    _say("Starting ComfyUI …")
    try:
        with ComfyServer(base, server_arguments) as server:
            info = server.object_info()
            graph = to_graph(json.loads(workflow.read_text("utf-8")), info)
            _fill_in(graph, info, model, server.upload_image(photo), prompt)
            _save_pictures(graph, info)
            started = time.monotonic()
            _say(f"Running workflows/{workflow.name} on {photo} …")
            run = server.run(graph, timeout=24 * 3600, on_event=_Progress(graph))
            if run.error:
                _say(f"Error: {run.error.message}\nThe server's log: {server.log}")
                return 1
            missing = _collect(server, run)
    except (ServerError, ValueError) as error:
        _say(f"Error: {error}")
        return 1
    if missing:
        _say(f"Error: the workflow saved no {', '.join(missing)}.")
        return 1
    done = time.monotonic()
    _say(f"Done in {done - started:.0f} s, and {started - began:.0f} s to start ComfyUI.")
    if model == NANO:
        _say(
            "FantasyID-nano is a demonstration, trained on synthetic people: not a likeness engine. "
            "The README says where to get the published model."
        )
    _say(str(next(DEMO_OUTPUT.glob("video.*"))))
    return 0


def _demo_model(base: Path) -> tuple[str, list[str]]:
    """Name of the model to use and the server arguments to find it: one that was put there, else the pack's own."""
    server_arguments = []
    places = [base / "models" / "fantasyid"]
    if host := os.environ.get("COMFYUI_PATH"):
        host = Path(host).expanduser().resolve()
        places.append(host / "models" / "fantasyid")
        config = base / "models.yaml"
        config.parent.mkdir(parents=True, exist_ok=True)
        own = {"base_path": str(host), "fantasyid": "models/fantasyid", "text_encoders": "models/text_encoders"}
        config.write_text(json.dumps({"comfyui": own}), "utf-8")  # JSON is YAML
        server_arguments = ["--extra-model-paths-config", str(config)]
    found = [folder.parent.name for place in places for folder in sorted(place.glob("*/transformer*/"))]
    ignored = {NANO, "stand-in"}  # the latter is what earlier versions of this command left
    return next((name for name in found if name not in ignored), NANO), server_arguments


def _fill_in(graph: dict, info: dict, model: str, photo: str, prompt: str | None) -> None:
    """Put the model, the photo and the prompt into the graph, whatever the workflow had been saved with.

    The words for an example person go with that person's photo, unless a prompt of one's own says who it is.
    """
    who = json.loads((DEMO_PHOTO.parent / "people.json").read_text("utf-8"))
    words = None if prompt else who.get(Path(photo).stem)
    for node in graph.values():
        kind, inputs, title = node["class_type"], node["inputs"], node["_meta"]["title"]
        if kind == "FantasyIDExamplePhoto":
            node.update(class_type="LoadImage", inputs={"image": photo})
            continue
        if inputs.pop("who", None) and words:
            inputs["who"] = words
        if kind == "SaveVideo":
            inputs["filename_prefix"] = "demo/video"
        if prompt and kind == "FantasyIDTextEncode" and "Prompt" in title and "Negative" not in title:
            inputs["text"] = prompt
        for name, (choices, *options) in info[kind]["input"].get("required", {}).items():
            choices = options[0].get("options", []) if choices == "COMBO" else choices
            if kind.startswith("FantasyID") and isinstance(choices, list) and model in choices:
                inputs[name] = model


def _save_pictures(graph: dict, info: dict) -> None:
    """Have face, mesh and contact sheet saved, which the workflow only shows."""
    for name, (kind, output) in DEMO_PICTURES.items():
        key = next(key for key, node in graph.items() if node["class_type"] == kind)
        source = [key, info[kind]["output_name"].index(output)]
        inputs = {"images": source, "filename_prefix": f"demo/{name}"}
        graph[name] = {"class_type": "SaveImage", "inputs": inputs, "_meta": {"title": f"Save {name}"}}


def _collect(server, run) -> list[str]:
    """Copy the saved files to `output/demo/` under their plain names; returns what was expected but not saved."""
    DEMO_OUTPUT.mkdir(parents=True)
    found = set()
    for file in run.files:
        if file["type"] == "output" and file["subfolder"] == "demo":
            path = Path(file["filename"])
            name = re.sub(r"_\d+_$", "", path.stem)
            (DEMO_OUTPUT / f"{name}{path.suffix}").write_bytes(server.download(file))
            found.add(name)
    return [name for name in ("video", *DEMO_PICTURES) if name not in found]


class _Progress:
    """Prints each node as it starts, and its progress in steps of a tenth."""

    def __init__(self, graph: dict):
        self._graph = graph
        self._shown = -1

    def __call__(self, event) -> None:
        if event.kind == "executing":
            self._shown = -1
            node = self._graph.get(event.node)
            _say(f"  {node['_meta']['title'] if node else event.node}")
        elif event.kind == "progress" and event.maximum > 1:
            tenth = int(10 * event.value / event.maximum)
            if tenth != self._shown:
                self._shown = tenth
                _say(f"    {event.value:.0f} of {event.maximum:.0f}")


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
