"""What every node of the pack shares: its place in the menu and how errors reach the artist."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import comfy.model_management
import comfy.utils
from comfy_api.latest import io

from ...fantasyid_core.errors import FantasyIDError
from . import notes

CATEGORY = "FantasyID"
_KNOWN = {field.name for field in fields(io.Schema)}  # the search's words came after 0.3.75


def listed(stage: str, *aliases: str, essentials: str | None = None) -> dict[str, Any]:
    """Where artists find a node, as arguments of `io.Schema`.

    Args:
        stage: the folder in the menu; its number keeps the order of a photo's way.
        aliases: what they may type into the search instead of the node's name.
        essentials: the folder among ComfyUI's essential nodes.
    """
    arguments = {
        "category": f"{CATEGORY}/{stage}",
        "search_aliases": list(aliases),
        "essentials_category": essentials,
    }
    return {name: value for name, value in arguments.items() if name in _KNOWN}


def advanced(widget: io.WidgetInput) -> io.WidgetInput:
    """The widget, which the page shows on demand; `advanced=` of its class came after 0.3.75."""
    widget.extra_dict = {**(widget.extra_dict or {}), "advanced": True}
    return widget


def counting(total: int) -> Callable[[int], None]:
    """A node's progress bar: called with what is done of `total`, it shows that and ends a run that was cancelled."""
    bar = comfy.utils.ProgressBar(total)

    def count(done: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done)

    return count


def saved_mesh(name: str) -> io.NodeOutput:
    """The output of a node that saved a mesh as `name` in the output folder; the page shows it on the node."""
    folder, _, file = name.rpartition("/")
    saved = {"filename": file, "subfolder": folder, "type": "output"}
    return io.NodeOutput(name, ui={"3d": [saved], "text": [name]})


class FantasyIDNode(io.ComfyNode):
    """Base of the pack's nodes: define `define_schema` and the classmethod `run`, which gets the inputs by name.

    The host runs `execute` under `torch.inference_mode`.
    """

    @classmethod
    def run(cls, **inputs: Any) -> io.NodeOutput:
        """What the node does; every subclass has its own."""
        raise NotImplementedError

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        """Call `run`; the pack's own errors get the node's name in front, all others (cancel, out of memory) pass."""
        notes.show()  # what the last run said goes
        try:
            return cls.run(**inputs)
        except FantasyIDError as error:
            notes.show(str(error))
            schema = cls.define_schema()
            raise type(error)(f"{schema.display_name or schema.node_id}: {error}") from error
