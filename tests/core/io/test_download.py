"""Downloading the published folder: pinned, resumable, checked. Against a hub of our own on 127.0.0.1."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from fantasyid_core.errors import DownloadError
from fantasyid_core.io import download

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEWER = "f" * 40
WEIGHTS = bytes(range(256)) * 4096  # 1 MiB
FILES = {
    "transformer/diffusion_pytorch_model.safetensors": WEIGHTS,
    "transformer/config.json": b'{"num_layers": 2}',
    "vae/config.json": b"{}",
    "face_encoder/EVA02_CLIP_L_336_psz14_s6B.pt": WEIGHTS[:5000],
    "face_encoder/models/antelopev2/glintr100.onnx": b"not needed",
    "face_encoder/parsing_bisenet.pth": b"not needed",
    ".gitattributes": b"*.safetensors lfs",
    "README.md": b"# FantasyID",
}


class Hub:
    """What the tests can set, and what was asked."""

    def __init__(self):
        self.files = dict(FILES)
        self.commit = COMMIT
        self.cuts: list[int] = []  # close the next responses after so many bytes
        self.ranges = True
        self.wrong = b""  # sent in place of what the listing promises
        self.status = 200
        self.requests: list[tuple[str, str | None]] = []

    def listing(self, revision: str) -> dict:
        commit = revision if len(revision) == 40 else self.commit
        siblings = []
        for path, content in self.files.items():
            git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            entry = {"rfilename": path, "size": len(content), "blobId": git}
            if path.endswith((".safetensors", ".pt")):
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            siblings.append(entry)
        return {"sha": commit, "siblings": siblings}


@pytest.fixture
def hub(monkeypatch):
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            state.requests.append((self.path, self.headers.get("Range")))
            path = unquote(self.path.partition("?")[0])
            if state.status != 200:
                return self.send_error(state.status)
            if path.startswith("/api/models/acvlab/FantasyID/revision/"):
                return self.answer(200, json.dumps(state.listing(path.rsplit("/", 1)[1])).encode())
            start = f"/acvlab/FantasyID/resolve/{state.commit}/"
            content = state.files.get(path.removeprefix(start)) if path.startswith(start) else None
            if content is None:
                return self.send_error(404)
            content = state.wrong or content
            ranges = self.headers.get("Range")
            if ranges and state.ranges:
                return self.answer(206, content[int(ranges.removeprefix("bytes=").rstrip("-")) :])
            return self.answer(200, content)

        def answer(self, status, content):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: state.cuts.pop(0)] if state.cuts and len(content) > 1 << 19 else content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setattr(download, "CHUNK", 1 << 16)
    yield state
    server.shutdown()
    server.server_close()


def get(folder: Path, revision="main", **options):
    download.fetch(download.plan(folder, revision=revision), folder, **options)


def content(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


NEEDED = {path: data for path, data in FILES.items() if path.startswith(("transformer", "vae", "face_encoder/EVA"))}


def test_fetches_what_is_needed_and_locks_it(hub, tmp_path):
    calls = []
    get(tmp_path, progress=lambda done, total: calls.append((done, total)))
    found = content(tmp_path)
    lock = json.loads(found.pop(download.LOCK))
    assert found == NEEDED
    assert lock["commit"] == COMMIT
    assert lock["files"] == {path: hashlib.sha256(data).hexdigest() for path, data in NEEDED.items()}
    size = sum(map(len, NEEDED.values()))
    assert calls[-1] == (size, size)
    assert calls == sorted(calls)


def test_planning_writes_nothing_and_knows_the_size(hub, tmp_path):
    plan = download.plan(tmp_path / "new")
    assert plan.size == sum(map(len, NEEDED.values()))
    assert not (tmp_path / "new").exists()


def test_a_second_run_checks_and_fetches_nothing(hub, tmp_path):
    get(tmp_path)
    hub.requests.clear()
    get(tmp_path)
    assert [path for path, _ in hub.requests if "/resolve/" in path] == []


def test_a_damaged_file_is_fetched_again(hub, tmp_path):
    get(tmp_path)
    (tmp_path / "vae/config.json").write_bytes(b"[]")
    get(tmp_path)
    assert content(tmp_path)["vae/config.json"] == FILES["vae/config.json"]


@pytest.mark.parametrize("ranges", [True, False])
def test_cut_connections_are_resumed(hub, tmp_path, ranges):
    hub.cuts, hub.ranges = [100_000, 300_000], ranges
    get(tmp_path)
    assert content(tmp_path)["transformer/diffusion_pytorch_model.safetensors"] == WEIGHTS
    ranges = [have for path, have in hub.requests if path.endswith("model.safetensors")]
    assert ranges[:2] == [None, "bytes=100000-"]


def test_a_connection_that_stays_cut_says_so_and_the_next_run_goes_on(hub, tmp_path):
    hub.cuts = [200_000] + [0] * 10
    with pytest.raises(DownloadError, match="run again to go on"):
        get(tmp_path)
    hub.cuts, hub.requests = [], []
    get(tmp_path)
    assert ("bytes=200000-") in [have for path, have in hub.requests]
    assert content(tmp_path).keys() == NEEDED.keys() | {download.LOCK}


def test_cancelling_keeps_what_arrived(hub, tmp_path):
    class Cancelled(Exception):
        pass

    def cancel(done, total):
        if done > 500_000:
            raise Cancelled

    with pytest.raises(Cancelled):
        get(tmp_path, progress=cancel)
    part = tmp_path / "transformer/diffusion_pytorch_model.safetensors.part"
    assert 400_000 < part.stat().st_size < len(WEIGHTS)
    get(tmp_path)
    assert content(tmp_path).keys() == NEEDED.keys() | {download.LOCK}


@pytest.mark.parametrize("wrong", [b"x" * len(WEIGHTS), WEIGHTS + b"more"])
def test_a_file_that_does_not_match_its_hash_never_gets_its_name(hub, tmp_path, wrong):
    hub.wrong = wrong
    with pytest.raises(DownloadError, match="does not match the hub's hash"):
        get(tmp_path)
    assert content(tmp_path).keys() == {download.LOCK}


def test_small_files_are_checked_too(hub, tmp_path):
    hub.files = {"vae/config.json": b"{}"}
    hub.wrong = b"[]"
    with pytest.raises(DownloadError, match="does not match"):
        get(tmp_path)


def test_a_branch_stands_for_the_locked_commit_for_ever(hub, tmp_path):
    get(tmp_path)
    hub.commit = NEWER  # the branch has moved
    assert download.plan(tmp_path).commit == COMMIT
    assert download.plan(tmp_path / "other").commit == NEWER
    with pytest.raises(DownloadError, match="choose another folder"):
        download.plan(tmp_path, revision=NEWER)
    with pytest.raises(DownloadError, match="choose another folder"):
        download.plan(tmp_path, repository="someone/else")


def test_a_hub_that_serves_other_weights_for_the_locked_commit_is_refused(hub, tmp_path):
    get(tmp_path)
    hub.files["transformer/diffusion_pytorch_model.safetensors"] = b"evil"
    with pytest.raises(DownloadError, match="the hub was changed"):
        download.plan(tmp_path)


def test_a_hub_that_serves_another_small_file_for_the_locked_commit_is_refused(hub, tmp_path):
    get(tmp_path)
    hub.files["vae/config.json"] = b'{"evil": 1}'
    with pytest.raises(DownloadError, match="the hub was changed"):
        get(tmp_path)


@pytest.mark.parametrize(
    "path",
    ["../x.json", "vae/../../x.json", "/etc/x.json", "vae\\..\\x.json", "C:/x.json", "vae//x.json", "vae/.. /x.json"],
)
def test_file_names_cannot_lead_out_of_the_folder(hub, tmp_path, path):
    hub.files[path] = b"{}"
    with pytest.raises(DownloadError, match="outside of the model's folder"):
        download.plan(tmp_path / "model")


def test_a_linked_sub_folder_is_not_written_through(hub, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "model" / "vae").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DownloadError, match="remove the link"):
        get(tmp_path / "model")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_unreachable_or_refusing_hubs_say_so(hub, tmp_path, monkeypatch):
    for status, reason in ((404, "no such model"), (401, "no such model"), (503, "cannot be reached.*503")):
        hub.status = status
        with pytest.raises(DownloadError, match=reason):
            download.plan(tmp_path)
    with pytest.raises(DownloadError, match="cannot be reached"):
        download.plan(tmp_path, endpoint="http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="expected https"):
        download.plan(tmp_path, endpoint="file:///etc")


def test_a_full_disk_is_said_before_anything_is_fetched(hub, tmp_path, monkeypatch):
    usage = download.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(DownloadError, match="GB free"):
        get(tmp_path / "model")
    assert not [path for path, _ in hub.requests if "/resolve/" in path]


def test_pickled_weights_are_left_out_where_safetensors_lie_beside_them():
    paths = ["vae/model.safetensors", "vae/pytorch_model.bin", "text_encoder/pytorch_model.bin", "docs/x.json"]
    paths += ["transformer_ema/config.json", "model_index.json"]
    assert download.needed(paths) == [paths[0], paths[2], paths[4], paths[5]]
    assert "transformer/config.json" not in download.needed([*paths, "transformer/config.json"])
