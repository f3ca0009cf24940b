"""Where the pack's files lie. Names that come from widgets never lead out of the host's folders."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import folder_paths

from ...fantasyid_core.errors import FantasyIDError, IdentityError, MeshError, SaveError, WeightsMissingError, cause
from ...fantasyid_core.io.layout import TRANSFORMERS, missing_parts
from ...fantasyid_core.io.listing import files_in, has_suffix

KEY = "fantasyid"
NOTHING = "nothing is there yet"
PACK = Path(__file__).resolve().parents[2]
BUNDLED = PACK / "models"  # what the pack ships: `NANO`
NANO = "FantasyID-nano"
# The cure comes first: under a node there is room for a few lines.
DOWNLOAD = "Run 'FantasyID Download Model' first (if it is bypassed: select it, Ctrl+B; tick 'confirm')"
BY_HAND = "By hand: from Hugging Face (acvlab/FantasyID) or ModelScope (amap_cvlab/FantasyID)."
IDENTITY_SUFFIXES = (".safetensors",)
MESH_SUFFIXES = (".ply", ".obj")
OUTPUT_MARK = " [output]"  # the host's own, at the end of a name

# Folders that extra_model_paths.yaml maps to `fantasyid` are registered already and stay in front.
folder_paths.add_model_folder_path(KEY, os.path.join(folder_paths.models_dir, KEY))


def roots() -> list[Path]:
    """The artist's folders of models, which win over the pack's `BUNDLED`; downloads go to the first."""
    return [Path(root) for root in folder_paths.get_folder_paths(KEY)]


def embedding_folders() -> list[Path]:
    """Where model files of face embeddings lie: with the pack's models, or in the ecosystem's insightface folder."""
    return [*roots(), Path(folder_paths.models_dir) / "insightface"]


def transformer_folder(folder: Path) -> Path | None:
    """The model's `transformer_ema/` or else `transformer/`; `None` if it has neither."""
    return next((folder / name for name in TRANSFORMERS if (folder / name).is_dir()), None)


def model_folders() -> list[str]:
    """Names of the folders that hold a transformer in the published layout, the bundled model's among them."""
    return sorted({entry.name for entry in _entries() if transformer_folder(entry) is not None})


def model_files() -> list[str]:
    """Names of the single .safetensors files directly in the model folders."""
    return sorted({entry.name for entry in _entries() if has_suffix(entry, [".safetensors"]) and entry.is_file()})


def resolve(name: str) -> Path:
    """Path of a model folder or file that a widget names, the artist's own before the bundled one.

    A name is one entry of a registered folder, so it cannot lead elsewhere; that an entry is itself a link, to another
    drive say, is the artist's choice.

    Raises:
        WeightsMissingError: no such entry, or not a plain name; or of the bundled model a part is missing.
    """
    places = " or ".join(str(root / (name if _is_plain(name) else "<name>")) for root in roots())
    if not _is_plain(name):
        raise WeightsMissingError(
            f"'{name}' is not a model's name: expected the name of one entry such as {places}. "
            "Choose one from the list."
        )
    for root in roots():
        if (root / name).exists():
            return root / name
    if name == NANO and (missing := missing_parts(BUNDLED / NANO)):
        what = f"is not complete. Missing: {'; '.join(missing)}" if (BUNDLED / NANO).is_dir() else "is not there"
        raise WeightsMissingError(
            f"Reinstall the pack: its model '{NANO}' {what}. It is no download; where the pack is a git checkout, run "
            f"in {PACK}: git checkout -- models/{NANO}"
        )
    if (BUNDLED / name).exists():
        return BUNDLED / name
    raise WeightsMissingError(
        f"{DOWNLOAD}, or choose another model_name in every node: the model '{name}' is not there. Expected {places}. "
        f"{BY_HAND}"
    )


def offered(names: list[str]) -> list[str]:
    """What a widget lists: an empty list would give the page no value, and the server would refuse the graph."""
    return names or [NOTHING]


def left_to_the_run(*names: str | None) -> bool:
    """For a node's `validate_inputs`: accept any file's name (None: it comes through a link); the run looks it up.

    A name that the server refuses beforehand is a red frame without a reason on the page, or "A node rejected one or
    more inputs", and the savers that do not hang on it run alone. What the run raises is shown in a window.
    """
    return True


def beside(model: Path, part: str) -> list[Path]:
    """Where a model's `face_encoder/` or `face_model/` may lie: in its own folder, then shared by all models."""
    own = [model / part] if model.is_dir() else []
    return own + [root / part for root in roots()]


def download_folder(name: str) -> Path:
    """Where a model called `name` is downloaded to; it need not exist.

    Raises:
        FantasyIDError: not a plain name.
    """
    if not _is_plain(name):
        raise FantasyIDError(f"'{name}' cannot be a folder's name: use letters, digits, '-', '_' and '.' only.")
    return roots()[0] / name


def identity_files() -> list[str]:
    """Saved identities and performances in the host's input folder; those in its output folder with `OUTPUT_MARK`."""
    return _names(IDENTITY_SUFFIXES)


def identity_path(name: str) -> Path:
    """Path of a saved identity that a widget names, as `identity_files` lists them.

    Raises:
        IdentityError: no such file, or the name leads out of the host's input and output folders.
    """
    return _find(name, "identity", IDENTITY_SUFFIXES, "as 'FantasyID Save Identity' writes it", IdentityError)


def performance_path(name: str) -> Path:
    """Path of a saved performance that a widget names, as `identity_files` lists them.

    Raises:
        WeightsMissingError: no such file, or the name leads out of the host's input and output folders.
    """
    written = "as 'FantasyID Save Performance' writes it"
    return _find(name, "performance", IDENTITY_SUFFIXES, written, WeightsMissingError)


def mesh_files() -> list[str]:
    """Mesh files that can be read, listed as `identity_files` does."""
    return _names(MESH_SUFFIXES)


def mesh_path(name: str) -> Path:
    """Path of a mesh file that a widget names, as `mesh_files` lists them.

    Raises:
        MeshError: no such file, or the name leads out of the host's input and output folders.
    """
    return _find(name, "mesh", MESH_SUFFIXES, "as 'FantasyID Save Mesh' or DECA writes it", MeshError)


def fingerprint(find: Callable[[str], Path], name: str | None) -> float:
    """For a node's `fingerprint_inputs`: when the file was changed; NaN, for which the host runs the node, if unknown.

    Args:
        name: `None` where it arrives through a link.
    """
    try:
        return math.nan if name is None else find(name).stat().st_mtime
    except (FantasyIDError, OSError):  # the run says why
        return math.nan


def save_path(prefix: str, suffix: str) -> Path:
    """A free file name in the host's output folder: `prefix` (may name sub-folders), a counter, `suffix`.

    Raises:
        SaveError: the prefix leads out of the output folder, or the folder cannot be made.
    """
    try:
        folder, stem, counter, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    except Exception as error:  # the host raises a bare Exception for a prefix such as ../../x
        raise SaveError(
            f"Cannot save as '{prefix}': the name must stay in the output folder ({cause(error)}). Choose another name."
        ) from error
    return Path(folder) / f"{stem}_{counter:05}_{suffix}"


def output_name(path: Path) -> str:
    """How a file that `save_path` named is called by widgets, without the host's mark."""
    return path.relative_to(os.path.normpath(folder_paths.get_output_directory())).as_posix()


def _names(suffixes: Sequence[str]) -> list[str]:
    places = ((folder_paths.get_input_directory(), ""), (folder_paths.get_output_directory(), OUTPUT_MARK))
    return [
        file.relative_to(base).as_posix() + mark
        for base, mark in places
        for file in files_in(base, suffixes, below=True)
    ]


def _find(name: str, kind: str, suffixes: Sequence[str], written: str, error: type[FantasyIDError]) -> Path:
    """By the name alone, as the host's rule for saving: links below the folder are the artist's choice."""
    plain, base = folder_paths.annotated_filepath(name.replace("\0", ""))
    base = Path(os.path.normpath(base or folder_paths.get_input_directory()))
    path = Path(os.path.normpath(base / plain.strip()))
    if not path.is_relative_to(base):
        raise error(f"The {kind} '{name}' lies outside of {base}: put the {kind} there and choose it again.")
    if not has_suffix(path, suffixes):
        raise error(f"'{name}' is no {' or '.join(suffixes)} file: put the {kind} into {base} and choose it.")
    if not path.is_file():
        raise error(
            f"The {kind} '{name}' is not there: expected {path}, {written}. Put the file there, press R and choose it."
        )
    return path


def _entries() -> list[Path]:
    places = [root for root in (*roots(), BUNDLED) if root.is_dir()]
    return [entry for root in places for entry in root.iterdir() if _is_plain(entry.name)]


def _is_plain(name: str) -> bool:
    return bool(name) and not name.startswith(".") and not any(c in name for c in '/\\:*?"<>|\0')
