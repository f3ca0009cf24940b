"""Several people in one video, in the real server."""

import pytest
from safetensors.torch import load

from tools.comfy_host import ComfyServer, Graph
from tools.complaints import check
from tools.graphs import changed, identity, latents_of, node, released


def run(comfy: ComfyServer, graph: Graph):
    """The latents of the node `sample`."""
    done = comfy.run(latents_of(graph))
    assert done.status == "success", done.error
    return load(comfy.download(done.outputs["save"]["latents"][0]))["latent_tensor"]


def with_people(photo: str, **inputs: object) -> Graph:
    """A still picture of one person, twice."""
    graph = released(photo, steps=1, frames=1)
    both = {"identity_1": ["id", 0], "identity_3": ["id", 0], "x_3": 0.5, "width_3": 0.5}
    graph["people"] = node("FantasyIDPeople", model=["load", 0], **both | inputs)
    graph["plan"] = node("PreviewImage", images=["people", 2])
    return changed(graph, sample={"model": ["people", 0], "identity": ["people", 1]})


def test_people_are_those_of_a_chain_of_applications(comfy: ComfyServer, photo: str):
    made = run(comfy, with_people(photo, overlap="add", x_1=0.0, width_1=1.0, x_3=0.0, width_3=1.0))
    chain = released(photo, steps=1, frames=1)
    settings = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "layer_weights": ""}
    for name, before in (("first", "load"), ("second", "first")):
        chain[name] = node("FantasyIDApply", model=[before, 0], identity=["id", 0], **settings)
    assert (made == run(comfy, changed(chain, sample={"model": ["second", 0]}))).all()
    assert "Person 1 and person 3 lie over each other" in comfy.notes["people"]
    apart = run(comfy, with_people(photo))
    assert "people" not in comfy.notes
    assert (apart != made).any()


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"width_1": 0.0}, "Person 1: The person's box is empty"),
        ({"x_3": 0.7}, "Person 3: The person's box leaves the picture: from 0.7 to 1.2"),
        ({"from_second_1": 2.0, "to_second_1": 1.0}, "Person 1: The identity would act from second 2"),
    ],
    ids=str,
)
def test_a_place_or_time_that_there_is_not(comfy: ComfyServer, photo: str, inputs: dict, said: str):
    check(comfy, with_people(photo, **inputs), "FantasyIDPeople", said)


def test_nobody_is_said(comfy: ComfyServer, photo: str):
    graph = identity(photo) | {"people": node("FantasyIDPeople", model=["load", 0])}
    graph["plan"] = node("PreviewImage", images=["people", 2])
    check(comfy, graph, "FantasyIDPeople", "Nobody is connected")
