"""The pack's nodes, one file per stage, in a photo's order."""

from comfy_api.latest import ComfyExtension, io

from . import (
    acceleration,
    detection,
    download,
    example_photo,
    fusion,
    injection,
    loading,
    long_video,
    meters,
    people,
    performance,
    reconstruction,
    repair,
    sampling,
    takes,
    text,
    video,
    views,
)

STAGES = (
    *(download, loading, text, example_photo, detection, reconstruction, performance),
    *(views, fusion, injection, people),
    *(acceleration, sampling, takes, video, long_video, repair, meters),
)


class FantasyIDExtension(ComfyExtension):
    """What the host asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for stage in STAGES for node in stage.NODES]


async def comfy_entrypoint() -> FantasyIDExtension:
    """What ComfyUI looks for when it loads the pack."""
    return FantasyIDExtension()
