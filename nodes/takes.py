"""Several takes of one video, of which the most like the person are finished."""

from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io

from ..fantasyid_core.errors import SamplingError
from ..fantasyid_core.meters.judge import best_first, judge_foreseen
from ..fantasyid_core.optional_import import require_diffusers
from ..fantasyid_core.sampling.takes import glimpse, steps_until_judged
from .host import notes
from .host.base import FantasyIDNode, listed
from .host.judging import judge_input, judge_of
from .host.sockets import Encoder
from .sampling import FantasyIDSampler, prepare

MOST = 16  # takes


def _sampler_inputs() -> list[io.Input]:
    """The sampler's inputs, in its order; its first noise comes of the seeds."""
    return [one for one in FantasyIDSampler.define_schema().inputs if one.id != "noise"]


class FantasyIDTakes(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = _sampler_inputs()
        return io.Schema(
            node_id="FantasyIDTakes",
            display_name="FantasyID Takes",
            **listed("5 video", "best of", "several seeds", "batch seeds", "variations", "pick the best", "likeness"),
            description=(
                "FantasyID Sampler with several seeds: begins a take with each, judges by a glimpse whose face is most "
                "like the person, and finishes only the best. A finished take is the one that FantasyID Sampler "
                "makes with its seed. Four takes cost about twice the time of one."
            ),
            inputs=[
                *(one for one in inputs if not one.optional),
                io.Int.Input(
                    "takes",
                    default=4,
                    min=1,
                    max=MOST,
                    tooltip="How many seeds are tried: seed, seed + 1, seed + 2, …",
                ),
                io.Int.Input(
                    "keep",
                    default=1,
                    min=1,
                    max=MOST,
                    tooltip="How many of the takes, the best first, are finished; they come out one after the other.",
                ),
                io.Float.Input(
                    "share",
                    default=0.3,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    tooltip="Part of the steps after which a take is judged. More is surer and slower: N takes cost as "
                    "many steps as 1 + (N − 1) × share videos.",
                ),
                judge_input(),
                *(one for one in inputs if one.optional),
                Encoder.Input(
                    "encoder",
                    optional=True,
                    tooltip="From FantasyID Load Model; the judge 'identity encoder' needs it.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent",
                    is_output_list=True,
                    tooltip="The best take's latents, for VAE Decode; with 'keep' above 1 the next ones after it.",
                ),
                io.Int.Output(display_name="seed", is_output_list=True, tooltip="The seed of each of them."),
                io.Image.Output(
                    display_name="glimpses",
                    tooltip="What the judge saw: of every take, in the order of the seeds, a few foreseen frames side "
                    "by side.",
                ),
                io.String.Output(
                    display_name="report", tooltip="Who judged, and how like the person each take was, the best first."
                ),
            ],
        )

    @classmethod
    def run(
        cls,
        model,
        identity,
        vae,
        positive,
        negative,
        seed: int,
        takes: int,
        keep: int,
        share: float,
        judge: str,
        steps: int,
        guidance: float,
        scheduler: str,
        width: int,
        height: int,
        frames: int,
        guide_identity: bool = False,
        encoder=None,
        **optional: Any,
    ) -> io.NodeOutput:
        require_diffusers("FantasyID Takes")
        if not 1 <= keep <= takes:
            raise SamplingError(
                f"Of {takes} takes {keep} cannot be kept. Set 'keep' to at most {takes}, or 'takes' higher."
            )
        judging = judge_of(judge, encoder, identity)  # says what is missing before minutes of sampling
        size = {"width": width, "height": height, "frames": frames}
        sampling = {"steps": steps, "guidance": guidance, "scheduler": scheduler, "guide_identity": guide_identity}
        begun = [
            prepare(model, identity, vae, positive, negative, seed + number, size, sampling, **optional)
            for number in range(takes)
        ]
        steps = begun[0].steps
        until = steps_until_judged(steps, share)
        foreseen = []
        for number, take in enumerate(begun, 1):
            notes.pass_on(f"Take {number} of {takes}, seed {take.seed}: {until} of {steps} steps …")
            foreseen.append(take.sample(until))
        pictures = vae.decode(glimpse(torch.cat(foreseen)))[:, 0].cpu().unflatten(0, (takes, -1))
        scores = judge_foreseen(judging, pictures, comfy.model_management.get_torch_device())
        order = best_first(scores)
        kept = order[:keep]
        report = _report(judging.name, until, steps, [(begun[i].seed, float(scores[i]), i in kept) for i in order])
        notes.show(report)
        finished = []
        for i in kept:
            notes.pass_on(f"Finishing the take of seed {begun[i].seed} …")
            finished.append({"samples": foreseen[i] if until >= steps else begun[i].sample()})
        glimpses = torch.stack([torch.cat(list(own), 1) for own in pictures])
        return io.NodeOutput(finished, [begun[i].seed for i in kept], glimpses, report)


def _report(judge: str, until: int, steps: int, takes: list[tuple[int, float, bool]]) -> str:
    """Seeds, scores and whether each is finished, in words."""
    lines = [f"Judged by: {judge}, after {until} of {steps} steps; 1 is the same face."]
    for seed, score, kept in takes:
        said = "no face was seen" if score != score else f"{score:.3f}"
        lines.append(f"Seed {seed}: {said}{', finished' if kept else ''}.")
    return "\n".join(lines)


NODES = [FantasyIDTakes]
