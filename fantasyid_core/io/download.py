"""Fetch the published folder from a Hugging Face hub: only when asked, resumable, pinned to one commit, hashes checked.

Plain `urllib`: `huggingface_hub` checks sizes but no hashes, and can be cancelled only through its progress bar.
The commit and every file's SHA-256 go to `fantasyid.lock.json` in the model's folder; later runs must match it.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from ..errors import DownloadError
from .text_files import read_text

REPOSITORY = "acvlab/FantasyID"
LOCK = "fantasyid.lock.json"
LAYOUT = ("tokenizer", "text_encoder", "vae", "scheduler", "transformer", "transformer_ema", "face_encoder")
UNUSED = ("face_encoder/models/", "face_encoder/detection_Resnet50_Final.pth", "face_encoder/parsing_bisenet.pth")
"""Detection, parsing and recognition networks of the release: no output of the model needs them."""
CHUNK, TIMEOUT, ATTEMPTS, PAUSE = 1 << 20, 30.0, 4, 1.0  # bytes, seconds, failures in a row, seconds

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all; what it raises cancels, and the next run goes on from there."""


@dataclass(frozen=True)
class RemoteFile:
    """One file at the pinned commit. The hub knows the SHA-256 of large files, of small ones git's own hash."""

    path: str
    size: int
    sha256: str | None
    git_sha1: str


@dataclass(frozen=True)
class Plan:
    """What a download would fetch, and from where."""

    endpoint: str
    repository: str
    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(file.size for file in self.files)


def plan(folder: Path, repository: str = REPOSITORY, revision: str = "main", endpoint: str | None = None) -> Plan:
    """Ask the hub what the model consists of; nothing is written.

    Args:
        folder: the model's folder. If a lock lies in it, its commit is what a branch or tag name stands for.
        revision: a commit (40 hexadecimal digits), or a branch or tag that is resolved once.
        endpoint: the hub's address; default: the environment's HF_ENDPOINT (a mirror), else https://huggingface.co.

    Raises:
        DownloadError: the hub cannot be reached, knows no such model, or contradicts the lock.
    """
    endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not re.fullmatch(r"https?://.+", endpoint) or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repository):
        raise DownloadError(
            f"{endpoint} {repository}: expected https://… and owner/name, such as {REPOSITORY}. "
            "Check the repository's name and the variable HF_ENDPOINT."
        )
    lock = _read_lock(folder)
    pinned = lock.get("commit")
    if lock and (lock["repository"] != repository or (_is_commit(revision) and revision != pinned)):
        raise DownloadError(
            f"{folder} holds {lock['repository']} at {pinned}, but {repository} at {revision} was asked for: "
            f"choose another folder name, or delete {folder / LOCK} to replace the model."
        )
    commit, listing = _list_files(endpoint, repository, pinned or revision)
    files = tuple(file for file in listing if file.path in needed([file.path for file in listing]))
    if not files:
        raise DownloadError(
            f"{repository} at {commit} holds none of the folders {', '.join(LAYOUT)}. "
            "Check the repository's name and revision."
        )
    for file in files:
        if file.sha256 and lock.get("files", {}).get(file.path, file.sha256) != file.sha256:
            raise DownloadError(
                f"{file.path} of {repository} is not what {folder / LOCK} says: the hub was changed. "
                "Nothing was replaced; use another mirror, or another folder name to take the new files."
            )
    return Plan(endpoint, repository, commit, files)


def _list_files(endpoint: str, repository: str, revision: str) -> tuple[str, list[RemoteFile]]:
    """The commit that a revision stands for, and its files."""
    url = f"{endpoint}/api/models/{repository}/revision/{quote(revision, safe='')}?blobs=true"
    try:
        with _open(url) as response:
            info = json.load(response)
        commit = info["sha"]
        files = [_remote_file(entry) for entry in info["siblings"]]
    except (URLError, HTTPException) as error:
        raise DownloadError(f"{url} cannot be reached ({error}): check the connection and run again.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DownloadError(
            f"{url} answered something that is no model's listing ({error!r}). "
            "Check the address of the mirror (HF_ENDPOINT) and run again."
        ) from error
    if not _is_commit(commit) or (_is_commit(revision) and commit != revision):
        raise DownloadError(
            f"{url} answered with commit {commit!r}, not the one that was asked for. "
            "Check the address of the mirror (HF_ENDPOINT) and run again."
        )
    return commit, files


def needed(paths: list[str]) -> list[str]:
    """Those of a repository's files that the pack reads: the published layout without what it never needs."""
    safe = {str(PurePosixPath(path).parent) for path in paths if path.endswith(".safetensors")}
    averaged = any(path.startswith("transformer_ema/") for path in paths)  # what the release prefers, as the pack does
    return [
        path
        for path in paths
        if path == "model_index.json"
        or (
            path.split("/")[0] in LAYOUT
            and not (averaged and path.startswith("transformer/"))
            and not path.startswith(UNUSED)
            and not (path.endswith(".bin") and str(PurePosixPath(path).parent) in safe)
        )
    ]


def fetch(plan: Plan, folder: Path, progress: Progress = lambda done, total: None) -> None:
    """Download what is missing or damaged, check every file and write the lock.

    Files appear under their name only when complete and checked; until then they are called `*.part`, from which an
    interrupted download goes on.

    Raises:
        DownloadError: no room, no connection, or a file that does not match its hash.
    """
    missing = sum(file.size for file in plan.files if not (folder / file.path).is_file())
    hashes = dict(_read_lock(folder).get("files", {}))
    done = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if missing > free:
            raise DownloadError(
                f"{folder} has {free / 1e9:.1f} GB free, but {missing / 1e9:.1f} GB are missing. Free some disk space."
            )
        hashes |= {file.path: file.sha256 for file in plan.files if file.sha256}
        _write_lock(plan, folder, hashes)
        for file in plan.files:
            found = _fetch_file(plan, file, folder, lambda n, done=done: progress(done + n, plan.size))
            if hashes.setdefault(file.path, found) != found:
                raise DownloadError(
                    f"{folder / file.path} is not what {folder / LOCK} says: the hub was changed. "
                    "Delete the model's folder and download it again from a source that you trust."
                )
            _write_lock(plan, folder, hashes)
            done += file.size
    except OSError as error:
        raise DownloadError(f"Cannot write to {folder} ({error}): free space there and run again to go on.") from error


def _fetch_file(plan: Plan, file: RemoteFile, folder: Path, progress: Callable[[int], None]) -> str:
    """Bring one file to its place; returns its SHA-256."""
    target = folder / file.path
    if not target.resolve().is_relative_to(folder.resolve()):
        raise DownloadError(f"{target} is a link out of the model's folder: remove the link and run again.")
    if target.is_file() and (found := _checked(file, target, progress)):
        return found
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    url = f"{plan.endpoint}/{plan.repository}/resolve/{plan.commit}/{quote(file.path)}"
    failures, cause = 0, "the connection was cut"
    while not part.exists() or part.stat().st_size < file.size:
        have = part.stat().st_size if part.exists() else 0
        try:
            for length in _receive(url, have, file.size, part):
                progress(length)
        except (URLError, HTTPException) as error:
            cause = str(error)
        failures = 0 if part.exists() and part.stat().st_size > have else failures + 1
        if failures == ATTEMPTS:
            raise DownloadError(f"{url} could not be fetched completely ({cause}): run again to go on from there.")
        time.sleep(PAUSE * failures)
    found = _checked(file, part, lambda _: progress(file.size))
    if not found:
        part.unlink()
        raise DownloadError(f"{url} arrived damaged: it does not match the hub's hash. It was deleted; run again.")
    part.replace(target)
    return found


def _receive(url: str, have: int, size: int, part: Path) -> Iterator[int]:
    """Append what follows byte `have` to `part`; yields its length after every chunk."""
    with _open(url, {"Range": f"bytes={have}-"} if have else {}) as response:
        if response.status != 206:  # the server sends it all again
            have = 0
        with part.open("ab" if have else "wb") as out:
            while have <= size and (chunk := _read(response)):
                have += out.write(chunk)
                yield have


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK)
    except OSError as error:  # not to be mistaken for one of the disk
        raise URLError(error) from error


def _checked(file: RemoteFile, path: Path, progress: Callable[[int], None]) -> str | None:
    """The file's SHA-256 if it is what the hub announced."""
    if path.stat().st_size != file.size:
        return None
    sha256 = hashlib.sha256()
    git_sha1 = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as content:
        while chunk := content.read(CHUNK):
            sha256.update(chunk)
            if not file.sha256:
                git_sha1.update(chunk)
            progress(content.tell())
    matches = sha256.hexdigest() == file.sha256 if file.sha256 else git_sha1.hexdigest() == file.git_sha1
    return sha256.hexdigest() if matches else None


def _remote_file(entry: dict) -> RemoteFile:
    path, lfs = entry["rfilename"], entry.get("lfs") or {}
    plain = re.fullmatch(r"[^/\\:*?\"<>|\0-\x1f]+(/[^/\\:*?\"<>|\0-\x1f]+)*", path)
    if not plain or any(part.strip(". ") == "" for part in path.split("/")):
        raise DownloadError(
            f"The hub lists a file called {path!r}, which would lie outside of the model's folder. "
            "Nothing was written; choose another repository or mirror."
        )
    return RemoteFile(path, int(entry["size"]), lfs.get("sha256"), entry["blobId"])


def _open(url: str, headers: dict[str, str] | None = None) -> HTTPResponse:
    try:
        return urlopen(Request(url, headers={"User-Agent": "ComfyUI-FantasyID", **(headers or {})}), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code >= 500 or error.code == 429:
            raise URLError(f"the server answers {error.code}") from error
        raise DownloadError(
            f"{url} answers {error.code} {error.reason}: no such model, revision or file. "
            "Check the names; a model behind a login must be downloaded by hand."
        ) from error
    except ValueError as error:
        raise DownloadError(f"{url} is not an address ({error}): check HF_ENDPOINT.") from error


def _read_lock(folder: Path) -> dict:
    try:
        lock = json.loads(read_text(folder / LOCK))
        return {"repository": str(lock["repository"]), "commit": str(lock["commit"]), "files": dict(lock["files"])}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise DownloadError(f"{folder / LOCK} cannot be read ({error!r}): delete it to start anew.") from error


def _write_lock(plan: Plan, folder: Path, hashes: dict[str, str]) -> None:
    lock = {"repository": plan.repository, "commit": plan.commit, "files": dict(sorted(hashes.items()))}
    new = folder / (LOCK + ".part")
    new.write_text(json.dumps(lock, indent=1), encoding="utf-8")
    new.replace(folder / LOCK)


def _is_commit(revision: object) -> bool:
    return isinstance(revision, str) and bool(re.fullmatch(r"[0-9a-f]{40}", revision))
