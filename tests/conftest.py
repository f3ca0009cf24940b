"""Shared set-up: packages without the repository root on `sys.path`, a real ComfyUI, where test data comes from."""

import contextlib
import importlib.util
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before torch is imported, and for the servers started here: the tests' models are so small that a second thread only
# waits for the first, and for seconds where other programs run.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from filelock import FileLock  # torch needs it too

if TYPE_CHECKING:
    import torch  # which takes seconds, and of a run of several processes the first needs it not
    from accelerate import Accelerator

    from fantasyid_lab.training.pool import Pool
    from fantasyid_lab.training.stage import Context, Stage

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
PARITY = TESTS / "fixtures" / "parity"
FULL_PARITY = os.environ.get("FANTASYID_PARITY")  # a folder with what licences keep out of the repository
SEEDS = itertools.count(1000)
if "FANTASYID_TESTS_SHARED" not in os.environ:  # what all processes of a run share: it ends with the first of them
    _folder = tempfile.TemporaryDirectory()
    os.environ["FANTASYID_TESTS_SHARED"] = _folder.name
SHARED = Path(os.environ["FANTASYID_TESTS_SHARED"])
SLOW = [  # by the beginnings of their files' names: what trains, draws people or runs networks of full width
    *("benchmarks", "deca_flame", "dense_landmarks", "detection", "download", "evaluation", "fitting", "image_tower"),
    *("int8", "mapped_memory", "model_defaults", "nano", "parity", "people", "profile_stage", "rasteriser_embree"),
    *("render", "topology", "training", "views", "workflows"),
]
INSIDE = "tests/host/inside/"
# So that workers end together.
LONGEST_FIRST = (INSIDE, "tests/host/", "tests/workflows/", "tests/lab/", "tests/nodes/", "")


def _register(package: str) -> None:
    """Import a package of the repository by path: the host has a top-level `nodes` that its root would shadow."""
    if package in sys.modules:
        return
    folder = ROOT / package
    spec = importlib.util.spec_from_file_location(
        package, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[package] = module
    spec.loader.exec_module(module)


sys.path[:] = [path for path in sys.path if Path(path).resolve() != ROOT]  # `python -m pytest` puts it there
_register("fantasyid_core")
_register("fantasyid_lab")
_register("tools")
_register("benchmarks")

from tools.comfy_host import ComfyServer  # noqa: E402
from tools.complaints import good  # noqa: E402
from tools.graphs import changed  # noqa: E402
from tools.launch_comfy import fit_imports  # noqa: E402

fit_imports()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where no slow test is wanted, their files are not even imported."""
    return True if "not slow" in config.option.markexpr and _is_slow(collection_path) else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Workers take whole files in the order of `LONGEST_FIRST`; those that share a process inside ComfyUI together."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return INSIDE if nodeid.startswith(INSIDE) else super()._split_scope(nodeid)

    config.option.loadscopereorder = False  # by how many tests there are in a file
    return ByFile(config, log)


def _is_slow(file: Path) -> bool:
    return file.name.startswith(tuple(f"test_{name}" for name in SLOW))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by what a test uses, before `-m` chooses: nobody has to remember to. And bring them in order."""
    items.sort(key=lambda item: next(i for i, room in enumerate(LONGEST_FIRST) if item.nodeid.startswith(room)))
    for item in items:
        fixtures, reasons = set(getattr(item, "fixturenames", ())), _skip_reasons(item)
        marks = {
            "host": "comfy" in fixtures or hasattr(getattr(item, "module", None), "ComfyServer"),
            "browser": fixtures & {"browser", "page"},
            "perf": item.get_closest_marker("alone"),
            "gpu": any("CUDA" in reason or "card" in reason for reason in reasons),
            "slow": _is_slow(item.path),
        }
        for name in (name for name, applies in marks.items() if applies):
            item.add_marker(name)


def _skip_reasons(item: pytest.Item) -> list[str]:
    return [mark.kwargs.get("reason", "") for mark in item.iter_markers("skipif")]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Which worker runs a test, and after which others, changes neither its random numbers nor what it measures."""
    import torch

    torch.manual_seed(0)
    with _turn(item):
        return (yield)


@contextlib.contextmanager
def _turn(item: pytest.Item) -> Iterator[None]:
    """Hold this worker's lock while its test runs, or if that is to be `alone` the locks of all."""
    if not (worker := os.environ.get("PYTEST_XDIST_WORKER")):
        yield
        return
    count = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    own = int(worker.removeprefix("gw")) % count  # a worker that replaces a crashed one has a new number
    folder = Path(item.config.getoption("basetemp")).parent  # that of this run; the worker's own lies in it
    door, *turns = (FileLock(folder / f"{name}.lock") for name in ("door", *range(count)))
    with contextlib.ExitStack() as held:
        with door:  # who waits for the others holds it: else their next tests would come first, again and again
            for turn in turns if item.get_closest_marker("alone") else [turns[own]]:
                held.enter_context(turn)
        yield


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """The release's numbers: those in the repository, or the full set where somebody has it."""
    return Path(FULL_PARITY) if FULL_PARITY else PARITY


@pytest.fixture(scope="session")
def flame_dir() -> Path:
    """The full set, with FLAME's mesh in it."""
    if not FULL_PARITY:
        pytest.skip("FLAME's licence keeps its mesh out of the repository; FANTASYID_PARITY names no folder with it")
    return Path(FULL_PARITY)


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory, standin: Path) -> Iterator[ComfyServer]:
    """The real ComfyUI with the pack, the stand-in as its model `FantasyID` and `probe_nodes`, one for all tests.

    `FantasyID-nano` comes with the pack.
    """
    base = tmp_path_factory.mktemp("comfy")
    shutil.copytree(standin, base / "models" / "fantasyid" / "FantasyID")
    shutil.copytree(TESTS / "support" / "probe_nodes", base / "custom_nodes" / "probe_nodes")
    with ComfyServer(base, ["--preview-method", "auto"]) as server:
        yield server


@pytest.fixture(scope="session")
def portrait() -> Path:
    """A photo file: one person, the face large, 512 × 512."""
    return ROOT / "workflows" / "assets" / "portrait.jpg"


@pytest.fixture(scope="session")
def photo(comfy: ComfyServer, portrait: Path) -> str:
    """`portrait` in the server's input folder, by the name that LoadImage takes."""
    return comfy.upload_image(portrait)


@pytest.fixture
def lives_on(comfy: ComfyServer, photo: str) -> Iterator[None]:
    """After the test the server samples and decodes as if nothing had been."""
    yield
    run = comfy.run(changed(good(photo), sample={"seed": next(SEEDS)}))
    assert run.status == "success", run.error
    assert len(run.files) == 1


@pytest.fixture(scope="session")
def sphere() -> "Callable[[int], tuple[torch.Tensor, torch.Tensor]]":
    """Function of a number of rings: vertices and faces of a unit sphere."""
    import torch

    def build(rings: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A closed unit sphere of 2 · rings · rings quads, each two triangles, seen from outside counter-clockwise."""
        latitude = torch.linspace(0, torch.pi, rings + 1)[:, None].expand(-1, 2 * rings)
        longitude = (torch.arange(2 * rings) * torch.pi / rings)[None].expand(rings + 1, -1)
        vertices = torch.stack(
            [latitude.sin() * longitude.sin(), latitude.cos(), latitude.sin() * longitude.cos()], -1
        ).reshape(-1, 3)
        row, column = torch.meshgrid(torch.arange(rings), torch.arange(2 * rings), indexing="ij")
        a, b = row * 2 * rings + column, row * 2 * rings + (column + 1) % (2 * rings)
        c, d = a + 2 * rings, b + 2 * rings
        return vertices, torch.cat([torch.stack([a, c, b], -1), torch.stack([b, c, d], -1)]).reshape(-1, 3)

    return build


@pytest.fixture(scope="session")
def astronaut() -> "torch.Tensor":
    """(1, 512, 512, 3) float32 0…1: one person, the face 90 px wide (public domain, from scikit-image)."""
    import torch

    return torch.from_numpy(pytest.importorskip("skimage.data").astronaut()).float()[None] / 255


@pytest.fixture(scope="session")
def six_faces() -> "torch.Tensor":
    """(1, 886, 1280, 3) float32 0…1: six people, faces of about 100 px (from the insightface wheel, not imported)."""
    import numpy as np
    import torch
    from PIL import Image

    spec = importlib.util.find_spec("insightface")
    photo = Path(spec.origin).parent / "data" / "images" / "t1.jpg" if spec and spec.origin else None
    if photo is None or not photo.is_file():
        pytest.skip("the insightface package with its sample photo is not installed")
    return torch.from_numpy(np.array(Image.open(photo).convert("RGB"))).float()[None] / 255


@pytest.fixture(scope="session")
def standin() -> Path:
    """A model folder in the published layout with small random weights."""
    from fantasyid_lab import dummy_model

    folder = SHARED / "standin"
    with FileLock(f"{folder}.lock"):
        return folder if folder.exists() else dummy_model.write(folder)


@pytest.fixture(scope="session")
def standin_nano(standin: Path) -> Path:
    """The stand-in in FantasyID-nano's layout: 160 × 160, rotary positions alone, no first frame, bytes, fp16."""
    folder = SHARED / "standin-nano"
    with FileLock(f"{folder}.lock"):
        return folder if folder.exists() else _in_nano_s_layout(shutil.copytree(standin, folder))


def _in_nano_s_layout(folder: Path) -> Path:
    from safetensors.torch import save_file

    from fantasyid_core.dit import byte_tokens
    from fantasyid_core.io import weights

    sizes = {"sample_width": 20, "sample_height": 20}
    other = {"use_learned_positional_embeddings": False, "first_frame_condition": False}
    changes = {"transformer": sizes | other, "text_encoder": {"vocab_size": byte_tokens.VOCABULARY}, "vae": {}}
    for part, change in changes.items():
        tensors = weights.read(folder / part)
        tensors.pop("patch_embed.pos_embedding", None)
        if part == "text_encoder":
            tensors["shared.weight"] = tensors["shared.weight"][: byte_tokens.VOCABULARY]
        config = weights.read_config(folder / part) | change
        shutil.rmtree(folder / part)
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config))
        save_file({name: x.half() for name, x in tensors.items()}, folder / part / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def pools() -> "tuple[Pool, Pool]":
    """A few tiny people to train on, and some who are never trained on."""
    pytest.importorskip("accelerate")
    import torch

    from fantasyid_lab.people.person import TRAIN, VALIDATION
    from fantasyid_lab.training.pool import Pool
    from fantasyid_lab.training.settings import PoolSettings

    sizes = PoolSettings(
        capacity=4,
        people=4,
        with_video=4,
        stills=2,
        prefill=4,
        share=0.0,
        frames=9,
        size=32,
        still_size=32,
        validation=4,
    )
    both = tuple(Pool(sizes, split, 0, torch.device("cpu")) for split in (TRAIN, VALIDATION))
    for pool in both:
        pool.prefill(4)
    return both


@pytest.fixture
def context(pools: "tuple[Pool, Pool]", tmp_path: Path) -> "Callable[..., Context]":
    """Makes the context of a training stage, with a model of test size."""
    import torch

    from fantasyid_lab import nano
    from fantasyid_lab.training import settings
    from fantasyid_lab.training.options import OPTIONS
    from fantasyid_lab.training.stage import Context

    small = {"steps": 6, "minutes": 0.0, "batch": 4, "warmup": 1, "ema": 0.5, "log_every": 1}

    def make(stage: str, **changes) -> Context:
        stage_settings = settings.read(settings.HERE / f"{stage}.toml")
        if stage == "text":  # thousands of captions take seconds to draw
            changes.setdefault("options", {"prefill": 100})
        if "options" in changes:
            changes["options"] = OPTIONS[stage](**changes["options"])
        stage_settings = replace(stage_settings, **small | {"pool": pools[0].settings} | changes)
        model = nano.build(sizes=nano.TINY)
        if stage in ("identity", "distil"):  # what is zero before training is not after the stage before
            torch.manual_seed(0)
            for parameter in model.transformer.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
        folder = tmp_path / "FantasyID-nano"
        if not folder.exists():
            nano.write(model, folder)
        return Context(stage_settings, model, *pools, out=tmp_path, device=torch.device("cpu"), bf16=False)

    return make


@pytest.fixture
def stopped_and_resumed() -> "Callable[[Callable[[], Stage], Accelerator], None]":
    """Trains a stage through, and another one stopped after its first step and resumed: both end with the same bits."""
    import torch

    from fantasyid_lab.training import loop

    def check(make: "Callable[[], Stage]", accelerator: "Accelerator") -> None:
        through = make()
        loop.train(through, accelerator, resume=False)

        stopped = make()
        draw = stopped.batch

        def ask_to_stop(step: int, generator: torch.Generator) -> dict:
            if step == 1:
                signal.raise_signal(signal.SIGTERM)
            return draw(step, generator)

        stopped.batch = ask_to_stop
        with pytest.raises(loop.Stopped):
            loop.train(stopped, accelerator, resume=False)
        resumed = make()
        loop.train(resumed, accelerator, resume=True)
        for name, wanted in through.objective.state_dict().items():
            torch.testing.assert_close(resumed.objective.state_dict()[name], wanted, rtol=0, atol=0)

    return check
