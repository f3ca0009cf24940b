"""The fuzzer sees what it is there to see, and every reader stands a few of its files."""

import signal
import time
from pathlib import Path

import pytest

from fantasyid_core.errors import MeshError
from tools.reliability import fuzz
from tools.reliability.readers import READERS, Reader


@pytest.fixture(autouse=True)
def alarm(monkeypatch):
    before = signal.signal(signal.SIGALRM, fuzz._too_slow)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(name: str, tmp_path: Path):
    reader, tally = READERS[name], fuzz.Tally(name)
    seeds = reader.seeds()
    for _, content in zip(range(len(seeds) + 60), fuzz.damaged(seeds, 1), strict=False):
        fuzz.check(reader, tmp_path / f"case{reader.suffix}", content, tally)
    assert tally.faults == []
    assert tally.accepted, "no seed is valid, so that nothing beyond the first check is reached"


def raises(error: Exception):
    def read(path: Path):
        raise error

    return read


@pytest.mark.parametrize(
    ("read", "fault"),
    [
        (raises(KeyError("x")), "KeyError: 'x'"),
        (raises(MeshError("It is no mesh.")), None),
        (lambda path: time.sleep(9), "over 0.05 s"),
        (lambda path: bytearray(400 << 20), "MB for a file of 3 bytes"),
    ],
    ids=["an error of another kind", "a typed error", "a hang", "memory"],
)
def test_a_fault_is_seen(read, fault, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.05 if fault == "over 0.05 s" else 5)
    monkeypatch.setattr(fuzz, "BYTES", 1 << 20)
    if fault and "MB" in fault:
        held = iter([0, 400 << 20])
        monkeypatch.setattr(fuzz, "_memory", lambda: next(held))
    tally = fuzz.Tally("x")
    fuzz.check(Reader(".x", list, read), tmp_path / "case.x", b"abc", tally)
    assert [fault in found for found in tally.faults] == ([True] if fault else [])
