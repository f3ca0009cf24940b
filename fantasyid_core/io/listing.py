"""Which files a folder offers: one rule wherever a folder is listed."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path


def is_hidden(name: str) -> bool:
    """Whether a name is not meant to be seen: `.DS_Store`, or `._NAME`, which macOS leaves beside every file."""
    return name.startswith(".")


def has_suffix(name: str | Path, suffixes: Sequence[str]) -> bool:
    """Whether a file's name ends with one of `suffixes` (lower case, such as ".mp4"), in whatever case."""
    return Path(name).suffix.lower() in suffixes


def files_in(folder: str | Path, suffixes: Sequence[str], *, below: bool = False) -> list[Path]:
    """Files of a folder that are not hidden and end with one of `suffixes`, in whatever case; sorted.

    Args:
        suffixes: lower case, such as (".mp4", ".mov").
        below: those of its folders, too; links to folders are followed, each folder once. Hidden ones are left out.

    A folder that is not there, or may not be read, has no files.
    """
    folders = _folders(Path(folder)) if below else [Path(folder)]
    return sorted(
        path for directory in folders for path in _visible(directory) if has_suffix(path, suffixes) and path.is_file()
    )


def _folders(folder: Path) -> Iterator[Path]:
    visited = set()
    for place, names, _ in os.walk(folder, followlinks=True):
        names[:] = sorted(name for name in names if not is_hidden(name))
        if (real := os.path.realpath(place)) in visited:  # a link to a folder above
            names.clear()
            continue
        visited.add(real)
        yield Path(place)


def _visible(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not is_hidden(path.name)]
    except OSError:
        return []
