"""Takes and the Likeness Gate in the real server."""

from safetensors.torch import load_file

from tools.comfy_host import ComfyServer
from tools.complaints import check
from tools.graphs import MODEL, changed, node, released


def test_a_finished_take_is_what_the_sampler_makes_of_its_seed(comfy: ComfyServer, photo: str):
    graph = released(photo, steps=3, frames=5, seed=8)  # dpm, which draws noise on the way
    takes = {"takes": 2, "keep": 2, "share": 0.5, "judge": "identity encoder", "encoder": ["load", 2], "seed": 7}
    graph["takes"] = node("FantasyIDTakes", **graph["sample"]["inputs"] | takes)
    graph["mine"] = node("SaveLatent", samples=["takes", 0], filename_prefix="takes/take")
    graph["one"] = node("SaveLatent", samples=["sample", 0], filename_prefix="takes/one")
    graph["report"] = node("PreviewAny", source=["takes", 3])
    graph["glimpses"] = node("PreviewImage", images=["takes", 2])
    done = comfy.run(graph)
    assert done.status == "success", done.error
    said = done.outputs["report"]["text"][0].splitlines()
    assert said[0] == "Judged by: identity encoder, after 2 of 3 steps; 1 is the same face."
    assert sorted(line.partition(":")[0] for line in said[1:]) == ["Seed 7", "Seed 8"]
    assert len(done.outputs["glimpses"]["images"]) == 2, "one row of pictures a take"
    place = [line.startswith("Seed 8") for line in said[1:]].index(True)
    folder = comfy.base / "output"
    mine = load_file(folder / "takes" / done.outputs["mine"]["latents"][place]["filename"])["latent_tensor"]
    one = load_file(folder / "takes" / done.outputs["one"]["latents"][0]["filename"])["latent_tensor"]
    assert mine.equal(one), "bit by bit"
    wrong = changed(graph, takes={"keep": 3})
    check(comfy, wrong, "FantasyIDTakes", "Of 2 takes 3 cannot be kept", "'keep' to at most 2")
    alone = changed(graph, takes={"seed": 9})
    del alone["takes"]["inputs"]["encoder"]
    check(comfy, alone, "FantasyIDTakes", "needs 'encoder'", "another judge")


def test_the_gate_sorts_videos_of_any_model(comfy: ComfyServer, photo: str):
    graph = {
        "photo": node("LoadImage", image=photo),
        "both": node("ImageBatch", image1=["blank", 0], image2=["photo", 0]),
        "list": node("RebatchImages", images=["both", 0], batch_size=1),
        "blank": node("EmptyImage", width=512, height=512, batch_size=1, color=0),
        "load": node("FantasyIDLoadModel", model_name=MODEL, weight_dtype="fp32"),
        "gate": node(
            "FantasyIDLikenessGate",
            **{"videos": ["list", 0], "judge": "identity encoder", "threshold": 0.999},
            **{"reference": ["photo", 0], "encoder": ["load", 2]},
        ),
        "scores": node("PreviewAny", source=["gate", 3]),
        "best": node("PreviewImage", images=["gate", 0]),
        "accepted": node("PreviewImage", images=["gate", 1]),
        "rejected": node("PreviewImage", images=["gate", 2]),
    }
    done = comfy.run(graph)
    assert done.status == "success", done.error
    assert done.outputs["scores"]["text"][0].splitlines() == [
        "Judged by: identity encoder; 1 of 2 accepted, from 0.999 on.",
        "Video 1: no clear face in any of 1 frames, rejected",
        "Video 2: 1.000, a clear face in 1 of 1 frames, best, accepted",
    ]
    assert [len(done.outputs[name]["images"]) for name in ("best", "accepted", "rejected")] == [1, 1, 1]
    graph["gate"]["inputs"]["videos"] = ["photo", 0]
    assert "rejected" not in comfy.run(graph).outputs, "where there is none, what follows does not run"
    graph["gate"]["inputs"]["videos"] = ["blank", 0]
    check(comfy, graph, "FantasyIDLikenessGate", "None of the 1 videos shows a clear face")
    del graph["gate"]["inputs"]["reference"]
    check(comfy, graph, "FantasyIDLikenessGate", "connect 'face' or 'reference'")
