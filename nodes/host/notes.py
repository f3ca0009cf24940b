"""Sentences under a node, where an artist looks; they are logged too."""

import logging

from comfy_execution.utils import get_executing_context

EMPTY = " "  # the page of 0.33 ignores a text that is empty, and would go on showing the last
# Node → the run that last showed something under it, and what.
_shown: dict[str, tuple[str, tuple[str, ...]]] = {}


def show(*sentences: str) -> None:
    """Add sentences to what the node that runs shows under it, each once; what an earlier run showed there goes.

    A box (subgraph) around it shows the sentences of all nodes in it. Outside of a run, as in tests of one node,
    nothing is shown.
    """
    if (context := get_executing_context()) is None:
        return
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    run, before = _shown.get(context.node_id, (context.prompt_id, ()))
    kept = before if run == context.prompt_id else ()
    now = (*kept, *(sentence for sentence in sentences if sentence not in kept))
    _shown[context.node_id] = context.prompt_id, now
    if now == before:
        return
    server.send_progress_text("\n".join(now) or EMPTY, context.node_id)
    for box in _boxes(context.node_id):
        inside = [said for node, said in _shown.items() if node.startswith(f"{box}:") and said[0] == context.prompt_id]
        server.send_progress_text("\n".join(line for _, lines in inside for line in lines) or EMPTY, box)


def pass_on(sentence: str) -> None:
    """Show for the moment what the node that runs is at, below its sentences; the next of these takes its place."""
    context = get_executing_context()
    if context is None:
        return
    from server import PromptServer

    if (server := getattr(PromptServer, "instance", None)) is not None:
        _, said = _shown.get(context.node_id, ("", ()))
        server.send_progress_text("\n".join((*said, sentence)), context.node_id)


def _boxes(node: str) -> list[str]:
    """Ids of the subgraphs around a node, whose own is theirs and its number in it: "7:2:5" is in "7:2" and "7"."""
    parts = node.split(":")
    return [":".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]


def warn(sentence: str) -> None:
    """`show` and log what the artist should know before waiting for the result."""
    logging.warning("FantasyID: %s", sentence)
    show(sentence)
