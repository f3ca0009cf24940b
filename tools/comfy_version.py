"""Where ComfyUI's versions differ for tests and tools: one function each. The pack's own are in `nodes/host/compat.py`.

Tried were 0.3.75, 0.19.3 and 0.33.0; a number here is the first of them that does so.
"""

import re

from .environment import host_version


def save_glb_module() -> str:
    """Module of the node SaveGLB, which has moved."""
    return "comfy_extras.nodes_save_3d" if _is_at_least(0, 33) else "comfy_extras.nodes_hunyuan3d"


def checks_choices() -> bool:
    """Whether the server refuses a choice that a node of today's schema does not list; before, the node itself must."""
    return _is_at_least(0, 19)


def reads_16_bit_grey() -> bool:
    """Whether Load Image reads photos by ffmpeg, 16-bit grey too; Pillow makes that white."""
    return _is_at_least(0, 33)


def saves_through_links() -> bool:
    """Whether saving goes through a link in the output folder that leads elsewhere; since then ComfyUI refuses."""
    return not _is_at_least(0, 33)


def _is_at_least(*wanted: int) -> bool:
    return tuple(int(part) for part in re.findall(r"\d+", host_version())[:3]) >= wanted
