"""What the server says of a bad graph, and whether it names the node, the cause and the cure."""

import json
import re
from dataclasses import dataclass

from .comfy_client import Graph, ServerError
from .comfy_host import ComfyServer
from .comfy_version import checks_choices
from .graphs import frames_of, released


@dataclass
class Complaint:
    """Why a graph did not run: the class of the node that is named, and what is said."""

    node: str
    message: str


def complaint(comfy: ComfyServer, graph: Graph) -> Complaint:
    """Run a bad graph. Errors of the pack's own, once running, begin with the node's name."""
    try:
        run = comfy.run(graph)
    except ServerError as error:  # refused before it ran
        (refused,) = json.loads(str(error).partition(": ")[2])["node_errors"].values()
        return Complaint(refused["class_type"], "; ".join(f"{e['message']}: {e['details']}" for e in refused["errors"]))
    assert run.status == "error"
    found = Complaint(run.error.node_type, run.error.message)
    if found.node.startswith("FantasyID"):
        assert re.fullmatch(r"FantasyID\.\w+Error", run.error.exception), run.error
        assert found.message.startswith(comfy.object_info(found.node)["display_name"] + ": "), found.message
    return found


def check(comfy: ComfyServer, graph: Graph, name: str, *expected: str) -> None:
    """Run a bad graph: the node `name` must complain, in these words among others."""
    found = complaint(comfy, graph)
    assert found.node == name, found
    assert [word for word in expected if word not in found.message] == [], found.message


def check_choice(comfy: ComfyServer, graph: Graph, name: str, choices: tuple[str, ...]) -> None:
    """Run a graph with a choice that its node `name` does not list: the server says what there is, or the node does."""
    expected = [f"not in {list(choices)}"] if checks_choices() else ["choose one of", ", ".join(choices)]
    check(comfy, graph, name, *expected)


def good(photo: str) -> Graph:
    """A small graph that works."""
    return frames_of(released(photo, steps=1, frames=1))
