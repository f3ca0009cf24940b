"""What every node of the pack shares: its category and how errors reach the artist."""

from typing import Any

from comfy_api.latest import io

from ...fantasyid_core.errors import FantasyIDError
from . import notes

CATEGORY = "FantasyID"


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
            schema = cls.define_schema()
            raise type(error)(f"{schema.display_name or schema.node_id}: {error}") from error
