"""Synchronous client of a ComfyUI server: queue graphs, follow them, fetch what they made."""

import asyncio
import json
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Graph = dict[str, dict[str, Any]]  # API format: node id → class_type, inputs
TEXT, PREVIEW_WITH_METADATA = 3, 4  # the host's protocol.py


class ServerError(RuntimeError):
    """The server is gone, or refused a request."""


@dataclass(frozen=True)
class Event:
    """Something that happened in a run: a node started ("executing"), told its "progress" or sent a "preview"."""

    kind: str
    node: str
    value: float = 0
    maximum: float = 0
    image: bytes | None = None  # a preview's JPEG or PNG file


@dataclass(frozen=True)
class NodeError:
    """Why a run failed, as the server reports it."""

    node_id: str
    node_type: str
    exception: str
    message: str
    traceback: str


@dataclass(frozen=True)
class Run:
    """A finished run."""

    prompt_id: str
    status: str  # success, error or interrupted
    outputs: dict[str, dict[str, Any]]  # node id → what the node showed
    error: NodeError | None
    events: tuple[Event, ...]

    @property
    def files(self) -> list[dict[str, str]]:
        """Every file that the run wrote: filename, subfolder, type (output or temp)."""
        shown = [item for output in self.outputs.values() for items in output.values() for item in items]
        return [item for item in shown if isinstance(item, dict) and "filename" in item]


class ComfyClient:
    """Speaks with the server at `url`. A thread of its own reads the websocket, by aiohttp, which ComfyUI brings.

    Attributes:
        notes: node id → the text that the page shows under the node.
    """

    def __init__(self, url: str):
        self.url = url
        self.notes: dict[str, str] = {}
        self._id = uuid.uuid4().hex
        self._news = threading.Condition()
        self._messages: dict[str, list[tuple[str, dict, bytes | None]]] = defaultdict(list)
        self._connected = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def connect(self) -> None:
        """Open the connection and begin to listen."""
        self._thread.start()
        self._call(self._open())

    def disconnect(self) -> None:
        """Close the connection and end the thread."""
        if not self._thread.is_alive():
            return
        self._call(self._session.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """The server's description of one node, or of all by id."""
        info = self._json("GET", f"/object_info/{node}" if node else "/object_info")
        return info[node] if node else info

    def global_subgraphs(self, key: str = "") -> dict[str, Any]:
        """The boxes that the server offers, by key, or one with its content."""
        return self._json("GET", f"/global_subgraphs/{key}" if key else "/global_subgraphs")

    def workflow_templates(self) -> dict[str, list[str]]:
        """Names of the workflows that packs bring, by the pack's folder."""
        return self._json("GET", "/workflow_templates")

    def translations(self) -> dict[str, Any]:
        """Words in other languages that packs bring, by language."""
        return self._json("GET", "/i18n")

    def upload_image(self, path: Path) -> str:
        """Copy a picture into the server's input folder; returns the name that LoadImage takes."""
        import aiohttp

        form = aiohttp.FormData({"overwrite": "true"})
        form.add_field("image", path.read_bytes(), filename=path.name)
        return self._json("POST", "/upload/image", data=form)["name"]

    def download(self, file: dict[str, str]) -> bytes:
        """The content of one of `Run.files`."""
        return self._request("GET", "/view", params={key: file[key] for key in ("filename", "subfolder", "type")})

    def queue(self, graph: Graph) -> str:
        """Queue a graph; returns its prompt id.

        Raises:
            ServerError: the server does not accept the graph, or only a part of it (which then runs), with its reasons
                per node.
        """
        answer = self._json("POST", "/prompt", json={"prompt": graph, "client_id": self._id})
        if answer["node_errors"]:
            raise ServerError(f"The server refused a part of the graph: {json.dumps(answer)}")
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 600, on_event: Callable[[Event], None] | None = None) -> Run:
        """Follow a queued graph until it is done; `on_event` is called as things happen.

        Raises:
            TimeoutError: not done after `timeout` seconds. ServerError: the server is gone.
        """
        deadline = time.monotonic() + timeout
        events: list[Event] = []
        finished = False
        while not finished:
            with self._news:
                self._news.wait_for(lambda: self._messages.get(prompt_id) or not self._connected, timeout=1)
                messages = self._messages.pop(prompt_id, [])
            for kind, data, image in messages:
                finished = finished or (kind == "executing" and data["node"] is None)
                if event := _event(kind, data, image):
                    events.append(event)
                    if on_event:
                        on_event(event)
            if not self._connected:
                raise ServerError(self._why_lost())
            # Only who queued a run is told that it ended: others look into the history.
            finished = finished or (not messages and bool(self.history(prompt_id)))
            if not finished and time.monotonic() > deadline:
                raise TimeoutError(f"The run was not done after {timeout:.0f} s.")
        return _finished_run(prompt_id, self.history(prompt_id)[prompt_id], events)

    def run(self, graph: Graph, timeout: float = 600, on_event: Callable[[Event], None] | None = None) -> Run:
        """`queue` and `wait`."""
        return self.wait(self.queue(graph), timeout, on_event)

    def interrupt(self) -> None:
        """Cancel the graph that runs."""
        self._request("POST", "/interrupt", json={})

    def free(self) -> None:
        """Unload all models and drop what is cached; the server does so a moment later."""
        self._request("POST", "/free", json={"unload_models": True, "free_memory": True})

    def history(self, prompt_id: str | None = None) -> dict[str, Any]:
        """The server's record of finished runs, by prompt id."""
        return self._json("GET", f"/history/{prompt_id}" if prompt_id else "/history")

    def _why_lost(self) -> str:
        return f"The server at {self.url} closed the connection."

    def _json(self, method: str, path: str, **options: Any) -> Any:
        return json.loads(self._request(method, path, **options))

    def _request(self, method: str, path: str, **options: Any) -> bytes:
        return self._call(self._send(method, path, options))

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _open(self) -> None:
        import aiohttp

        self._session = aiohttp.ClientSession(self.url, timeout=aiohttp.ClientTimeout(total=300))
        self._socket = await self._session.ws_connect("/ws", params={"clientId": self._id}, max_msg_size=0)
        # Previews then say which run and node they belong to.
        await self._socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        self._connected = True
        self._listener = self._loop.create_task(self._listen())

    async def _send(self, method: str, path: str, options: dict[str, Any]) -> bytes:
        import aiohttp

        try:
            async with self._session.request(method, path, **options) as response:
                body = await response.read()
        except aiohttp.ClientConnectionError as error:
            raise ServerError(self._why_lost()) from error
        if response.status >= 400:
            raise ServerError(
                f"The server refused {method} {path} ({response.status}): {body.decode(errors='replace')}"
            )
        return body

    def _note(self, node: str, text: str) -> None:
        """What the page shows under a node; a blank text clears it."""
        if text:
            self.notes[node] = text
        else:
            self.notes.pop(node, None)

    async def _listen(self) -> None:
        import aiohttp

        async for message in self._socket:
            if message.type == aiohttp.WSMsgType.TEXT:
                content = json.loads(message.data)
                kind, data, image = content["type"], content["data"], None
            elif int.from_bytes(message.data[:4], "big") == TEXT:
                start = 8 + int.from_bytes(message.data[4:8], "big")
                self._note(message.data[8:start].decode(), message.data[start:].decode().strip())
                continue
            elif int.from_bytes(message.data[:4], "big") == PREVIEW_WITH_METADATA:
                start = 8 + int.from_bytes(message.data[4:8], "big")
                kind, data, image = "preview", json.loads(message.data[8:start]), message.data[start:]
            else:
                continue
            with self._news:
                if "prompt_id" in data:
                    self._messages[data["prompt_id"]].append((kind, data, image))
                self._news.notify_all()
        with self._news:
            self._connected = False
            self._news.notify_all()


def _event(kind: str, data: dict[str, Any], image: bytes | None) -> Event | None:
    if kind == "executing" and data["node"] is not None:
        return Event(kind, data["node"])
    if kind == "progress":
        return Event(kind, data["node"], data["value"], data["max"])
    if kind == "preview":
        return Event(kind, data["node_id"], image=image)
    return None


def _finished_run(prompt_id: str, record: dict[str, Any], events: list[Event]) -> Run:
    messages = dict(record["status"]["messages"])
    error = None
    if data := messages.get("execution_error"):
        error = NodeError(
            node_id=data["node_id"],
            node_type=data["node_type"],
            exception=data["exception_type"],
            message=data["exception_message"].strip(),
            traceback="".join(data["traceback"]),
        )
    status = "interrupted" if "execution_interrupted" in messages else record["status"]["status_str"]
    return Run(prompt_id, status, record["outputs"], error, tuple(events))
