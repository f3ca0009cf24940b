"""Damaged files for every reader of outside data: `python -m tools.reliability.fuzz [READER…] --cases 10000`.

Each case is a valid small file that was cut, flipped, spliced, overwritten with extreme numbers or doubled. A reader
gives something or raises a FantasyIDError; anything else is a fault, as are 5 s for a file and more memory than four
times its size and 256 MB. Readers run in processes of their own, so that a crash is seen. `--coverage` lets atheris
choose the cases, where it is installed. Files that found a fault are kept in --keep.
"""

import argparse
import json
import logging
import multiprocessing
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from fantasyid_core.errors import FantasyIDError

from .readers import READERS, Reader

SECONDS = 5.0
BYTES = 256 << 20
_STUCK = 60.0  # s without an answer after which a reader's process is ended
_EXTREMES = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"99999999999",
    b"-1",
    b"1e999",
    b"nan",
)


@dataclass
class Tally:
    """What one reader did.

    Attributes:
        cases: files read; accepted: of them, those that gave something.
        slowest: seconds; most_memory: bytes that one file added.
        faults: what was wrong, and with which file.
    """

    reader: str
    cases: int = 0
    accepted: int = 0
    slowest: float = 0.0
    most_memory: int = 0
    faults: list[str] = field(default_factory=list)


class TooSlowError(BaseException):
    """A file took too long; no `except Exception` of a reader catches it."""


def damaged(seeds: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Endlessly many files, the first of them as they were."""
    yield from seeds
    rng = random.Random(seed)
    while True:
        content = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            _damage(content, rng, seeds)
        yield bytes(content)


def _damage(content: bytearray, rng: random.Random, seeds: Sequence[bytes]) -> None:
    place = rng.randrange(len(content) + 1)
    length = min(rng.choice((1, 2, 4, 8, 64, 512)), len(content) - place)
    kind = rng.randrange(8)
    if kind == 0:
        del content[place:]
    elif kind == 1:
        del content[place : place + length]
    elif kind == 2 and place < len(content):
        content[place] ^= 1 << rng.randrange(8)
    elif kind == 3:
        content[place : place + length] = rng.randbytes(length)
    elif kind == 4:
        extreme = rng.choice(_EXTREMES)
        content[place : place + len(extreme)] = extreme
    elif kind == 5:
        other = rng.choice(seeds)
        start = rng.randrange(len(other) + 1)
        content[place : place + length] = other[start : start + length]
    elif kind == 6:
        content[place:place] = content[place : place + length] * rng.choice((1, 3, 50))
    else:
        content[place:place] = rng.choice(_EXTREMES)


def check(reader: Reader, path: Path, content: bytes, tally: Tally) -> None:
    """Read one file and write into the tally what came of it."""
    path.write_bytes(content)
    before, start = _memory(), time.perf_counter()
    fault = ""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        reader.read(path)
        tally.accepted += 1
    except TooSlowError:
        fault = f"over {SECONDS:g} s"
    except FantasyIDError:
        pass
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    taken, seconds = _memory() - before, time.perf_counter() - start
    if taken > 4 * len(content) + BYTES:
        fault = fault or f"{taken >> 20} MB for a file of {len(content)} bytes"
    tally.cases += 1
    tally.slowest, tally.most_memory = max(tally.slowest, seconds), max(tally.most_memory, taken)
    if fault:
        tally.faults.append(fault[:300])


def _memory() -> int:
    """The most that this process ever held, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _too_slow(*_: object) -> None:
    raise TooSlowError


def _prepare() -> None:
    signal.signal(signal.SIGALRM, _too_slow)
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)


def _work(name: str, cases: int, seed: int, folder: Path, keep: Path | None, answers: Connection) -> None:
    _prepare()
    reader, tally = READERS[name], Tally(name)
    path = folder / f"case{reader.suffix}"
    for _, content in zip(range(cases), damaged(reader.seeds(), seed), strict=False):
        known = len(tally.faults)
        check(reader, path, content, tally)
        if keep and len(tally.faults) > known:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{name}_{tally.cases}{reader.suffix}").write_bytes(content)
        if tally.cases % 100 == 0:
            answers.send(tally)
    answers.send(tally)
    answers.close()


def fuzz(name: str, cases: int, seed: int = 0, keep: Path | None = None) -> Tally:
    """A reader in a process of its own: a crash and a file that never ends are faults, too."""
    context = multiprocessing.get_context("spawn")
    answers, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=_work, args=(name, cases, seed, Path(folder), keep, sender))
        process.start()
        sender.close()
        tally = Tally(name)
        try:
            while answers.poll(_STUCK):
                tally = answers.recv()
            process.kill()
            tally.faults.append(f"no answer for {_STUCK:g} s after case {tally.cases}")
        except EOFError:
            process.join()
            if process.exitcode:
                tally.faults.append(f"the process ended with {process.exitcode} after case {tally.cases}")
        return tally


def fuzz_by_coverage(name: str, cases: int, corpus: Path) -> None:
    """Atheris chooses the cases by which lines they reach; ends this process at a fault or after the last case."""
    import atheris

    with atheris.instrument_imports(include=["fantasyid_core", "fantasyid_lab"], enable_loader_override=False):
        reader = READERS[name]
    for seed, content in enumerate(reader.seeds()):
        corpus.mkdir(parents=True, exist_ok=True)
        (corpus / f"seed{seed}").write_bytes(content)
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / f"case{reader.suffix}"

    def one(content: bytes) -> None:
        path.write_bytes(content)
        with suppress(FantasyIDError):
            reader.read(path)

    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    atheris.Setup([sys.argv[0], f"-runs={cases}", "-timeout=5", "-rss_limit_mb=4096", str(corpus)], one)
    atheris.Fuzz()


def table(tallies: Sequence[Tally]) -> str:
    """Markdown."""
    lines = ["| reader | files | of them accepted | slowest | most memory | faults |", "| --- " * 6 + "|"]
    for t in tallies:
        faults = "; ".join(dict.fromkeys(t.faults)) or "none"
        memory = f"{t.most_memory >> 20} MB"
        lines.append(f"| {t.reader} | {t.cases} | {t.accepted} | {t.slowest:.2f} s | {memory} | {faults} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.reliability.fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*", choices=[*READERS, []], help="which (all)")
    parser.add_argument("--cases", type=int, default=10_000, help="files a reader (10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for files that found a fault")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--coverage", type=Path, metavar="CORPUS", help="one reader by atheris, with this corpus")
    options = parser.parse_args()
    names = options.readers or list(READERS)
    if options.coverage:
        fuzz_by_coverage(names[0], options.cases, options.coverage)
        return 0
    tallies = []
    for name in names:
        tallies.append(fuzz(name, options.cases, options.seed, options.keep))
        sys.stdout.write(table(tallies[-1:]).splitlines()[-1] + "\n")
        sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps([asdict(t) for t in tallies], indent=1) + "\n", encoding="utf-8")
    return int(any(t.faults for t in tallies))


if __name__ == "__main__":
    sys.exit(main())
