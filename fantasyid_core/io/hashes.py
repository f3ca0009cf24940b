"""A file's SHA-256, by which known files and those of a measurement are told apart."""

import hashlib
from pathlib import Path

_BLOCK = 1 << 20


def sha256(file: Path) -> str:
    """In hexadecimal, of the whole file. Raises OSError: it cannot be read."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
