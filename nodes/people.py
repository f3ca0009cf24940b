"""FantasyID People: several identities in one video, each with its place and its time."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..fantasyid_core.dit.config import FPS
from ..fantasyid_core.dit.injection import Injection
from ..fantasyid_core.dit.region import OVERLAPS, SHARE, Region
from ..fantasyid_core.errors import FantasyIDError, IdentityError
from ..fantasyid_core.video.plan import arrange, box_around, draw_plan, overlaps
from .host import notes
from .host.base import FantasyIDNode, advanced, listed
from .host.sockets import Identity
from .injection import fade_input, guide_identity_input, seconds_input

PEOPLE = 4
BOXES = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 0.5, 1.0), (0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0))
_PLAN_WIDTH = 480  # px


def person_inputs(number: int) -> list[io.Input]:
    """The widgets of one person."""
    left, top, width, height = BOXES[number - 1]

    def share(name: str, default: float, tooltip: str) -> io.Float.Input:
        return io.Float.Input(
            f"{name}_{number}",
            default=default,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=True,
            tooltip=f"Person {number}: {tooltip}, as a share of the picture's.",
        )

    def second(name: str, tooltip: str) -> io.Float.Input:
        return seconds_input(f"{name}_{number}", f"Person {number}: {tooltip}")

    inputs = [
        share("x", left, "where the box begins, from the left, by the width"),
        share("y", top, "where the box begins, from the top, by the height"),
        share("width", width, "width of the box"),
        share("height", height, "height of the box"),
        io.Float.Input(
            f"strength_{number}",
            default=1.0,
            min=0.0,
            max=3.0,
            step=0.05,
            optional=True,
            tooltip=f"Person {number}: 1 as trained; more insists on the face, 0 is off.",
        ),
        second("from_second", "when in the video they begin to act."),
        second("to_second", "when in the video they end; 0: at the video's end."),
    ]
    return inputs if number <= 2 else [advanced(one) for one in inputs]


class FantasyIDPeople(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        numbers = range(1, PEOPLE + 1)
        return io.Schema(
            node_id="FantasyIDPeople",
            display_name="FantasyID People",
            **listed(
                "4 identity",
                "two people",
                "several people",
                "couple",
                "regional",
                "regional prompt",
                "boxes",
                "masks",
                "multiple characters",
            ),
            description=(
                "Puts up to four people into one video, each in a box or a mask of the picture and for a part of the "
                "time, as several Apply FantasyID in a row would. Two people stand side by side as it is. The plan "
                "shows who is where and when before the run."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of FantasyID Load Model, with or without LoRAs."),
                *(
                    Identity.Input(
                        f"identity_{number}",
                        optional=True,
                        tooltip=f"Person {number}, from FantasyID Feature Fusion or Load Identity.",
                    )
                    for number in numbers
                ),
                *(
                    io.Mask.Input(
                        f"mask_{number}",
                        optional=True,
                        tooltip=f"Person {number}: where they act, in place of the box: one mask, or one per frame.",
                    )
                    for number in numbers
                ),
                io.Combo.Input(
                    "overlap",
                    options=list(OVERLAPS),
                    default=SHARE,
                    optional=True,
                    tooltip="Where people lie over each other: add: all in full. share: each a part. last wins: the "
                    "one with the highest number.",
                ),
                guide_identity_input(),
                fade_input("How long it takes a person to begin and to end, half of it before that moment."),
                *(one for number in numbers for one in person_inputs(number)),
            ],
            outputs=[
                io.Model.Output(tooltip="The same MODEL, following all of them."),
                Identity.Output(
                    display_name="identity",
                    tooltip="For the FantasyID Sampler and Image Condition: the first person, with everybody's "
                    "reference crop in its place as first frame.",
                ),
                io.Image.Output(display_name="plan", tooltip="Who is where, and below it when."),
            ],
        )

    @classmethod
    def run(
        cls,
        model,
        overlap: str = SHARE,
        guide_identity: bool = False,
        fade_seconds: float = 0.25,
        **people: Any,
    ) -> io.NodeOutput:
        from .host.options import add_injection, defaults_of

        own = defaults_of(model)
        chosen = [number for number in range(1, PEOPLE + 1) if people.get(f"identity_{number}") is not None]
        if not chosen:
            raise IdentityError(
                "Nobody is connected. Connect one of 'identity_1' to 'identity_4', from FantasyID Feature Fusion or "
                "FantasyID Load Identity."
            )
        regions = [region_of(number, people, fade_seconds, overlap) for number in chosen]
        identities = [people[f"identity_{number}"] for number in chosen]
        for number, identity, region in zip(chosen, identities, regions, strict=True):
            strength = people.get(f"strength_{number}", 1.0)
            injection = Injection(
                identity.tokens,
                strength,
                guide_identity=guide_identity,
                region=region,
                frame_tokens=identity.frame_tokens,
            )
            model = add_injection(model, injection)
        for first, second in overlaps(regions):
            notes.warn(
                f"Person {chosen[first]} and person {chosen[second]} lie over each other, where the model may mix "
                f"them ('{overlap}'). Move their boxes apart, or let one begin when the other has ended."
            )
        first = min(region.from_second for region in regions)
        there = [i for i, region in enumerate(regions) if region.from_second == first]
        crops = arrange([identities[i].image for i in there], [box_around(regions[i]) for i in there])
        ends = [region.to_second for region in regions if region.to_second != math.inf]
        seconds = max(own.frames / FPS, *ends, *(region.from_second + 1 for region in regions))
        height = round(_PLAN_WIDTH * own.height / own.width)
        plan = draw_plan(regions, chosen, _PLAN_WIDTH, height, seconds)
        return io.NodeOutput(model, replace(identities[there[0]], image=crops), plan[None])


def region_of(number: int, people: Mapping[str, Any], fade: float, overlap: str) -> Region:
    """Where and when person `number` acts, by the node's inputs.

    Raises:
        IdentityError: the box, the mask or the times are none; which person's is said.
    """

    def value(name: str, default: float) -> float:
        return people.get(f"{name}_{number}", default)

    mask = people.get(f"mask_{number}")
    left, top, width, height = BOXES[number - 1]
    box = value("x", left), value("y", top), value("width", width), value("height", height)
    try:
        return Region(
            None if mask is None else mask.reshape(-1, *mask.shape[-2:]),
            value("from_second", 0.0),
            value("to_second", 0.0) or math.inf,
            fade,
            overlap,
            box=box if mask is None else None,
        )
    except FantasyIDError as error:
        raise type(error)(f"Person {number}: {error}") from error


NODES = [FantasyIDPeople]
