"""The nodes about views in the real server, from a clip to latents."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from tools.comfy_host import ComfyServer, Graph
from tools.graphs import changed, latents_of, node, released


def latents(comfy: ComfyServer, graph: Graph) -> tuple[torch.Tensor, dict]:
    run = comfy.run(latents_of(graph))
    assert run.status == "success", run.error
    return load(comfy.download(run.outputs["save"]["latents"][0]))["latent_tensor"], run.outputs


@pytest.mark.parametrize("combine", ["best view", "concatenate tokens", "weighted by pose"])
def test_new_views_of_one_photo_act_on_the_video(comfy: ComfyServer, photo: str, combine: str):
    settings = {"yaw": 20.0, "pitch": 0.0, "columns": 2, "rows": 1, "min_seen": 0.0, "altered": 2, "seed": 5}
    made = {
        "new": node("FantasyIDNewViews", face=["face", 0], mesh=["mesh", 0], views=["views", 0], **settings),
        "text": node("PreviewAny", source=["new", 4]),
        "mask": node("MaskPreview", mask=["new", 3]),
        "sheet": node("PreviewImage", images=["new", 1]),
    }
    graph = changed(released(photo) | made, id={"views": ["new", 0], "combine": combine})
    several, outputs = latents(comfy, graph)
    assert "2 new views." in outputs["text"]["text"][0]
    assert "2 altered copies (seed 5)" in outputs["text"]["text"][0]
    assert len(outputs["mask"]["images"]) == 5
    first, _ = latents(comfy, changed(graph, id={"combine": "first view"}))
    assert torch.equal(first, latents(comfy, released(photo))[0])
    again, _ = latents(comfy, changed(graph, new={"seed": 6} if combine != "best view" else {"seed": 5}))
    assert torch.equal(again, several) == (combine == "best view")


def test_other_people_are_reported_to_the_artist(
    comfy: ComfyServer, photo: str, six_faces: torch.Tensor, tmp_path: Path
):
    from PIL import Image

    group = tmp_path / "group.png"
    Image.fromarray((six_faces[0] * 255).round().byte().numpy()).save(group)
    more = {
        "group": node("LoadImage", image=comfy.upload_image(group)),
        "said": node("PreviewAny", source=["views", 2]),
    }
    graph = changed(released(photo) | more, views={"images": ["group", 0]})
    _, outputs = latents(comfy, graph)
    assert "0 of 6 tracks show the person" in outputs["said"]["text"][0]
