"""Tests inside ComfyUI: plain modules of pytest, which import it at their top; they run in processes of their own.

ComfyUI reads the command line when it is imported, and puts its folder on `sys.path`: no test can come before or after.
So the run that collects these modules only reads the names of their tests, functions at the top level. A second pytest
starts ComfyUI, which takes seconds, and runs those that were chosen of all modules with the same command line, once for
each of ComfyUI's ways to hold weights; what became of them is reported test by test, with skips and expected failures
as what they are.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest

from tools import in_process
from tools.environment import ROOT, find_host

INSIDE = json.loads(os.environ.get("FANTASYID_INSIDE", "null"))  # an inner process: how it starts ComfyUI, its tests
PATCHERS = ["plain", *["dynamic VRAM"] * in_process.has_dynamic_vram(find_host())]
AS_ON_A_GPU = ("test_compiling", "test_benchmark_rows")  # ComfyUI's attention for CPUs breaks graphs
# glibc keeps what is freed: asking the system for every large tensor anew takes up to a third of the time.
MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "1000000000"}
TIMEOUT = 900  # s, of a process with all its tests


if INSIDE:
    import torch

    in_process.start(Path(INSIDE["base"]), *INSIDE["arguments"], dynamic_vram=INSIDE["dynamic_vram"])
    torch.set_grad_enabled(False)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> "InnerModule | None":
    """Outside a module that only knows its tests' names, inside pytest's own."""
    return None if INSIDE else InnerModule.from_parent(parent, path=module_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of its modules an inner process runs the tests that were chosen.

    Named on its command line they would be an error where a module skips itself.
    """
    if INSIDE:
        items[:] = [item for item in items if f"{item.path}::{item.originalname}" in INSIDE["tests"]]


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """ComfyUI's base directory: `models`, `input`, `output` are in it, and nothing that another module left."""
    import folder_paths

    yield Path(INSIDE["base"])
    shutil.rmtree(INSIDE["base"], ignore_errors=True)  # not every module writes there
    folder_paths.filename_list_cache.clear()


@pytest.fixture(scope="module")
def plain(standin_nano: Path) -> Any:
    """A MODEL of FantasyID-nano's layout without an identity, in an inner process."""
    from pack.tests.support.in_comfyui import load

    return load(standin_nano)


class InnerModule(pytest.File):
    """The names of a module's tests."""

    def collect(self) -> Iterator[pytest.Item]:
        for patcher in PATCHERS:
            for number, line in enumerate(self.path.read_text("utf-8").splitlines()):
                if match := re.match(r"def (test_\w+)", line):
                    name = f"{match[1]}[{patcher}]"
                    yield InnerTest.from_parent(self, name=name, test=match[1], patcher=patcher, line=number)


class Outcomes(NamedTuple):
    """What became of a process's tests."""

    # By module and name, one for each set of parameters, in JUnit's format; a module that skips itself under "".
    cases: dict[tuple[str, str], list[ElementTree.Element]]
    end: str


class InnerTest(pytest.Item):
    """One test of an inner process, with all its parameters."""

    def __init__(self, *, test: str, patcher: str, line: int, **settings):
        super().__init__(**settings)
        self.test, self.patcher, self.line = test, patcher, line
        self.add_marker("host")

    @property
    def command_line(self) -> tuple[str, ...]:
        """ComfyUI's arguments."""
        return ("--cpu", *["--use-pytorch-cross-attention"] * (self.path.stem in AS_ON_A_GPU))

    def outcomes(self) -> Outcomes:
        """Of all tests that were chosen of this command line and patcher: who asks first waits for them."""
        by_process = self.session.stash.setdefault(OUTCOMES, {})
        process = self.command_line, self.patcher
        if process not in by_process:
            items = [item for item in self.session.items if isinstance(item, InnerTest)]
            together = [item for item in items if (item.command_line, item.patcher) == process]
            by_process[process] = _run(together, *process)
        return by_process[process]

    def runtest(self) -> None:
        outcomes = self.outcomes()
        if not (cases := outcomes.cases[self.path.stem, self.test]):
            for end in (end for case in outcomes.cases["", self.path.stem] for end in case.iter("skipped")):
                pytest.skip(end.text)  # the whole module, at its import
            pytest.fail(outcomes.end, pytrace=False)
        failed = [(case, end) for case in cases for end in (*case.iter("failure"), *case.iter("error"))]
        if failed:
            said = ["\n".join((case.get("name"), end.get("message"), *case.itertext())) for case, end in failed]
            pytest.fail("\n\n".join(said), pytrace=False)
        for end in (end for case in cases for end in case.iter("skipped")):
            leave = pytest.xfail if end.get("type") == "pytest.xfail" else pytest.skip
            leave(end.get("message"))

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, self.line, self.name


OUTCOMES = pytest.StashKey[dict[tuple[tuple[str, ...], str], Outcomes]]()


def _run(items: list[InnerTest], arguments: tuple[str, ...], patcher: str) -> Outcomes:
    """Run these tests in a process with these arguments of ComfyUI."""
    modules, tests = {str(item.path): None for item in items}, [f"{item.path}::{item.test}" for item in items]
    outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        start = {"base": f"{folder}/base", "arguments": arguments, "dynamic_vram": patcher == "dynamic VRAM"}
        inside = json.dumps(start | {"tests": tests})
        written = [f"--junitxml={report}", "-o", "junit_logging=all", f"--basetemp={folder}/temporary"]
        try:
            ended = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *written, *modules],
                cwd=ROOT,
                env=outer | MEMORY | {"FANTASYID_INSIDE": inside},
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
            end = f"The process ended with {ended.returncode}:\n{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}"
        except subprocess.TimeoutExpired as error:
            end = str(error)
        cases = defaultdict(list)
        for case in ElementTree.parse(report).iter("testcase") if report.is_file() else ():
            module, name = (case.get(key).partition("[")[0].rpartition(".")[2] for key in ("classname", "name"))
            cases[module, name].append(case)
    return Outcomes(cases, end)
