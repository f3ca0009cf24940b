"""The benchmarks run: the small model on the CPU, as `python -m benchmarks --smoke` does."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from benchmarks.__main__ import measure
from benchmarks.measure import Row
from benchmarks.modes import Mode
from benchmarks.workload import fitting
from tools.environment import ROOT


def run(*arguments: str, module: str = "benchmarks") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    files = [f"--{kind}={folder / ('out.' + kind)}" for kind in ("json", "table", "plot")]
    done = run("--smoke", *files)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "failed" not in done.stderr
    return json.loads((folder / "out.json").read_text()), done.stdout, folder


def test_every_mode_of_the_cpu_gives_its_rows(smoke):
    names = [row["name"] for row in smoke[0]["rows"]]
    assert names[:2] == ["CogVideoX alone, diffusers, eager", "FantasyID as released, interval 1, eager"]
    for mode in ("ours, exact, eager", "whole run: VAE decode", "whole run: all of it"):
        assert mode in names


def test_rows_have_times_and_errors_to_the_exact_path(smoke):
    rows = {row["name"]: row for row in smoke[0]["rows"]}
    assert all(row["milliseconds"] > 0 for row in rows.values())
    assert rows["ours, exact, eager"]["error"] is None
    assert 0 < rows["ours, fp8_e4m3fn storage"]["error"] < 0.2
    assert "extrapolated" in rows["whole run: sampling, 50 steps"]["note"]
    assert rows["whole run: all of it"]["note"] == "9 frames of 96 × 64"


def test_the_table_and_the_plot_show_every_step(smoke):
    content, printed, folder = smoke
    steps = [row for row in content["rows"] if row["kind"] == "step"]
    assert (folder / "out.table").read_text() in printed
    assert all(f"| {row['name']} | {row['milliseconds']:.0f} |" in printed for row in steps)
    assert "| FantasyID as released, interval 1, eager |" in printed
    with Image.open(folder / "out.plot", formats=["PNG"]) as picture:
        assert picture.size[1] > 50 * len(steps)


def test_a_mode_that_fails_loses_nothing_but_itself(caplog):
    def broken(bench, name):
        yield Row("before", 1.0, 0.0)
        raise MemoryError("no room\nfor this")

    def good(bench, name):
        yield Row(name, 2.0, 0.0)

    rows = list(measure(None, [Mode("broken", broken), Mode("good", good)]))
    assert [row.name for row in rows] == ["before", "good"]
    assert "broken: failed: MemoryError: no room" in caplog.text


@pytest.mark.parametrize(("gib", "blocks"), [(79, 42), (19.5, 42), (12, 18), (3, 2)])
def test_a_small_card_measures_fewer_blocks_and_says_so(gib, blocks):
    work = fitting(int(gib * 2**30))
    assert work.config["num_layers"] == blocks
    assert (f"{blocks} of its 42 blocks" in work.name) == (blocks < 42)
