"""What the registry's archive of the pack holds, as `comfy node publish` makes it."""

import shutil
import subprocess
from pathlib import Path

from .environment import ROOT

IGNORE = ".comfyignore"


def tracked_files() -> list[str]:
    """Files that git tracks, by their paths in the repository, which must be a checkout."""
    return _git("ls-files")


def archived_files() -> list[str]:
    """Files that git tracks and `.comfyignore` leaves, by their paths in the repository, which must be a checkout."""
    tracked, ignored = tracked_files(), set(_git("ls-files", "--cached", "--ignored", f"--exclude-from={IGNORE}"))
    return [file for file in tracked if file not in ignored and (ROOT / file).is_file()]


def unpack(folder: Path) -> Path:
    """Put the archive's files into `folder`, as the registry's client unpacks them; returns it."""
    for file in archived_files():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    return folder


def _git(*arguments: str) -> list[str]:
    command = ["git", "-c", "core.quotePath=false", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
