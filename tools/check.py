"""`python run.py check`: what is read and not run, in seconds: lint, format, types, and what imports what."""

import subprocess
import sys
import time
from collections.abc import Callable

from .environment import ROOT

CHECKS = {
    "ruff check": ["-m", "ruff", "check", "."],
    "ruff format": ["-m", "ruff", "format", "--check", "."],
    "imports": ["-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"],
    "types": ["-m", "basedpyright", "--pythonpath", sys.executable],
}


def main(say: Callable[[str], None]) -> int:
    """Run all checks, also after one has failed; returns 1 if any has."""
    failed = []
    for name, command in CHECKS.items():
        began = time.monotonic()
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            failed.append(name)
            say(done.stdout + done.stderr)
        say(f"{name}: {'FAILED' if done.returncode else 'passed'} ({time.monotonic() - began:.1f} s)")
    return int(bool(failed))
