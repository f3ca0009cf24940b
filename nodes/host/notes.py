"""Sentences under a node, where an artist looks; they are logged too."""

import logging

from comfy_execution.utils import get_executing_context

# Node → the run that last showed something under it, and what.
_shown: dict[str, tuple[str, tuple[str, ...]]] = {}


def show(*sentences: str) -> None:
    """Add sentences to what the node that runs shows under it; what an earlier run showed there goes.

    Outside of a run, as in tests of one node, nothing is shown.
    """
    if (context := get_executing_context()) is None:
        return
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    run, before = _shown.get(context.node_id, (context.prompt_id, ()))
    now = (*(before if run == context.prompt_id else ()), *sentences)
    _shown[context.node_id] = context.prompt_id, now
    if now != before:
        server.send_progress_text("\n".join(now), context.node_id)


def warn(sentence: str) -> None:
    """`show` and log what the artist should know before waiting for the result."""
    logging.warning("FantasyID: %s", sentence)
    show(sentence)
