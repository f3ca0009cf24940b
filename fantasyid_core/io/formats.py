"""What a file is, told by its first bytes: its name may say anything."""

import zipfile
from pathlib import Path

from ..errors import WeightsError

AGAIN = "Download the .safetensors file of the same model instead."
_UNPACK = "It is an archive: unpack it and use the files in it."
BEGINNINGS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the weights", "Run 'git lfs pull' or download the file."),
    (
        0,
        b"GGUF",
        "a GGUF file",
        "FantasyID's models are not read from GGUF: use the same model as .safetensors, and to save memory load it "
        "with weight_dtype fp8_e4m3fn.",
    ),
    (0, b"ggml", "a GGML file", AGAIN),
    (0, b"\x89HDF", "an HDF5 file (Keras)", AGAIN),
    (0, b"\x93NUMPY", "a NumPy array", AGAIN),
    (4, b"TFL3", "a TensorFlow Lite file", AGAIN),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z file", _UNPACK),
    (0, b"Rar!", "a RAR file", _UNPACK),
    (0, b"\x1f\x8b", "a gzip file", _UNPACK),
    (0, b"BZh", "a bzip2 file", _UNPACK),
    (0, b"\xfd7zXZ", "an xz file", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file", _UNPACK),
    (257, b"ustar", "a tar file", _UNPACK),
    (0, b"\x89PNG", "a picture", AGAIN),
    (0, b"\xff\xd8\xff", "a picture", AGAIN),
    (8, b"WEBP", "a picture", AGAIN),
    (4, b"ftyp", "a video", AGAIN),
    (0, b"%PDF", "a PDF document", AGAIN),
    (0, b"glTF", "a 3-D model (.glb)", AGAIN),
    (0, b"ply\n", "a mesh (.ply)", "Load it with FantasyID Load Mesh."),
)
_WEB_PAGES = (b"<!doctype", b"<html", b"<?xml")
_HEAD = 512
_LONGEST_HEADER = 100_000_000  # bytes that the safetensors library allows


def refuse_foreign(path: Path) -> None:
    """Say so where a file holds something else than weights.

    Raises:
        WeightsError: names the format, told by its magic number, and what to do.
        OSError: it cannot be read.
    """
    head = _head(path)
    if _begins_as_safetensors(head):  # its length may look like another format's magic number
        return
    if head.lstrip().lower().startswith(_WEB_PAGES):
        raise WeightsError(f"{path} is a web page, not weights: the download needs a login or was blocked. Repeat it.")
    for offset, magic, name, cure in BEGINNINGS:
        if head[offset:].startswith(magic):
            raise WeightsError(f"{path} is {name}. {cure}")
    if head.startswith(b"PK\3\4") and (found := _foreign_zip(path)):
        raise WeightsError(f"{path} is {found[0]}. {found[1]}")


def is_safetensors(path: Path) -> bool | None:
    """Whether a file's content is safetensors: `False` for PyTorch's own formats, `None` where that is not to tell.

    Raises:
        OSError: it cannot be read.
    """
    head = _head(path)
    if _begins_as_safetensors(head):
        return True
    return False if head.startswith((b"PK\3\4", b"\x80")) else None


def _begins_as_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def _foreign_zip(path: Path) -> tuple[str, str] | None:
    """What a zip archive is and what to do, or `None` for a PyTorch file, whole or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):  # damaged: PyTorch's reader says so
        return None
    if "constants.pkl" in names:
        return "a TorchScript program", AGAIN
    if "data.pkl" in names:
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays (.npz)", AGAIN
    return "a zip file", _UNPACK
