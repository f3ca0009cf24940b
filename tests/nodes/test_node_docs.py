"""docs/nodes.md is what the running server says of the nodes."""

from tools.assets import node_docs
from tools.comfy_host import ComfyServer


def test_the_page_of_the_nodes_is_current(comfy: ComfyServer):
    written = node_docs.PAGE.read_text("utf-8")
    assert written == node_docs.document(comfy.object_info()), "run `python -m tools.assets.node_docs`"
