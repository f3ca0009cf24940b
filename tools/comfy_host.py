"""Start and stop the real ComfyUI with the pack in it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from .comfy_client import ComfyClient, Event, Graph, NodeError, Run, ServerError
from .environment import ROOT, find_host

__all__ = ["ComfyServer", "Event", "Graph", "NodeError", "Run", "ServerError", "find_host", "has_accelerator"]

FOLDERS = ("custom_nodes", "input", "output", "models", "user", "temp")


def has_accelerator() -> bool:
    """Whether torch sees a GPU that ComfyUI can use; without one it must be told to use the CPU."""
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


class ComfyServer(ComfyClient):
    """A ComfyUI process of its own, on a free port of this machine, with `base` as its base directory.

    Args:
        base: made if absent; its `models/`, `input/` and `output/` are the server's.
        arguments: more of ComfyUI's own, e.g. `["--lowvram"]` (not on a CPU: ComfyUI has them exclude each other).
        environment: variables to add to this process' own.
        start_timeout: seconds until the server must answer.
        pack: the folder that is installed as the pack.

    Raises:
        ServerError: on entering, if the server does not start; the message ends with its log.
    """

    def __init__(
        self,
        base: Path,
        arguments: tuple[str, ...] | list[str] = (),
        environment: dict[str, str] | None = None,
        start_timeout: float = 300,
        pack: Path = ROOT,
    ):
        self.port = _free_port()
        super().__init__(f"http://127.0.0.1:{self.port}")
        self.base = Path(base).resolve()
        self.log = self.base / "server.log"
        self.process: subprocess.Popen | None = None
        self._arguments = arguments
        self._environment = environment or {}
        self._start_timeout = start_timeout
        self._pack = pack

    def __enter__(self) -> "ComfyServer":
        try:
            self._start()
            self.connect()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process; harmless if it has ended."""
        self.disconnect()
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of what the server printed."""
        return "\n".join(self.log.read_text("utf-8", errors="replace").splitlines()[-lines:])

    def rss_bytes(self) -> int:
        """Memory that the server holds, bytes."""
        import psutil

        server = psutil.Process(self.process.pid)  # on Windows a venv's Python is a child of its launcher
        return sum(process.memory_info().rss for process in (server, *server.children(recursive=True)))

    def _start(self) -> None:
        for folder in FOLDERS:
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        _put_pack(self._pack, self.base / "custom_nodes" / "ComfyUI-FantasyID")
        command = [sys.executable, str(ROOT / "tools" / "launch_comfy.py"), str(find_host())]
        command += ["--port", str(self.port), "--base-directory", str(self.base), "--disable-api-nodes"]
        command += ["--database-url", f"sqlite:///{(self.base / 'user' / 'comfyui.db').as_posix()}"]
        command += [*([] if has_accelerator() else ["--cpu"]), *self._arguments]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", **self._environment}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.base, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + self._start_timeout
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise ServerError(self._why_lost())
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/system_stats", timeout=5) as answer:
                # Another server may have got the port meanwhile.
                return str(self.base) in json.load(answer)["system"]["argv"]
        except (urllib.error.URLError, OSError):
            return False

    def _why_lost(self) -> str:
        try:
            state = f"ended with exit code {self.process.wait(timeout=1)}"
        except subprocess.TimeoutExpired:
            state = "does not answer"
        return f"ComfyUI {state}. The end of its log ({self.log}):\n{self.log_tail()}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _put_pack(pack: Path, place: Path) -> None:
    """Link `pack` to `place`, or copy it where links are not allowed (Windows without developer mode)."""
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        shutil.rmtree(place)
    try:
        place.symlink_to(pack, target_is_directory=True)
    except OSError:
        shutil.copytree(pack, place, ignore=shutil.ignore_patterns(".*", "output", "__pycache__"))
