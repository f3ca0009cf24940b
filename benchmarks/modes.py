"""Every mode that is measured, in one list: what a row is called and what makes it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from . import baselines, compiling, computer_memory, long_video, quantised, whole_run
from .bench import Bench
from .measure import Row, time_step
from .ours import STEPS, Host
from .workload import Inputs, Workload

AS_RELEASED = "FantasyID as released, interval 1, eager"


Make = Callable[[Bench, str], Iterator[Row]]


@dataclass(frozen=True)
class Mode:
    """One or several rows.

    Attributes:
        name: of its row, and what `--only` matches.
        rows: measures them.
        cuda: needs a GPU.
        full_size: does not exist, or tells nothing, at the size of the smoke run.
        by_name: takes so long that it is measured only where `--only` asks for it.
    """

    name: str
    rows: Make
    cuda: bool = False
    full_size: bool = False
    by_name: bool = False


def baseline(make: Callable[[Workload, object, Inputs, str], baselines.Step], **options) -> Make:
    """A bare transformer's step."""

    def rows(bench: Bench, name: str) -> Iterator[Row]:
        bench.host.forget()  # one process: our host's models must not stand beside it
        yield time_step(name, make(bench.work, bench.published, bench.inputs, bench.device, **options))

    return rows


def unchanged(_: Host, model):
    """The MODEL as it is."""
    return model


def ours(
    change: Callable[[Host, object], object] = unchanged,
    *,
    weight_dtype: str = "default",
    identity: bool = True,
    free: float | None = None,
    steps: int = STEPS,
    amortised: bool = False,
    note: str = "",
) -> Make:
    """Our MODEL through the host.

    Args:
        change: what a node would do to it: (host, MODEL) → MODEL.
        free: GiB that stay free on the card, all else being occupied.
        steps: of the run that is measured; a cache needs many to show what it gains.
        amortised: the mean of all steps after the first instead of a median, for steps of different cost.
    """

    def rows(bench: Bench, name: str) -> Iterator[Row]:
        host = bench.host
        itself = identity and change is unchanged and weight_dtype == "default" and free is None
        exact = bench.exact(steps) if identity and not itself else None
        options = {"steps": steps, "amortised": amortised, "note": note}
        host.forget()
        try:
            model = change(host, host.model(weight_dtype, identity))
            if free is None:
                row, latents = host.run(name, model, exact, **options)
                if itself:
                    bench.known[steps] = latents
                yield row
            else:
                with host.only_free(free) as taken:
                    yield host.run(name, model, exact, taken, **options)[0]
        finally:
            model = None
            host.forget()

    return rows


def faster(**switches) -> Callable[[Host, object], object]:
    """The node FantasyID Faster with these switches, the others off."""

    def change(host: Host, model):
        from pack.nodes.acceleration import FantasyIDFaster

        off = {one.id: one.default for one in FantasyIDFaster.define_schema().inputs if one.id != "model"}
        return FantasyIDFaster.run(model=model, **{**off, **switches}).args[0]

    return change


def half_of_the_steps(**switches) -> Callable[[Host, object], object]:
    """The same, and a step skipped after each full one, whatever it changes: random weights cannot say what may be."""

    def change(host: Host, model):
        from pack.fantasyid_core.dit.step_cache import CacheSettings
        from pack.nodes.host.options import set_step_cache

        return set_step_cache(faster(**switches)(host, model), CacheSettings(1e9, start=0.0, most=1))

    return change


def in_half_the_picture(host: Host, model):
    """The identity, on the left side alone."""
    from pack.fantasyid_core.dit.injection import Injection
    from pack.fantasyid_core.dit.region import Region
    from pack.nodes.host.options import add_injection

    mask = torch.zeros(1, 48, 72)
    mask[..., :36] = 1
    return add_injection(model, Injection(host.tokens, region=Region(mask)))


def acting(host: Host, model):
    """The identity with other vertex tokens in each latent frame: all but the face tokens, 36 of the release's 115."""
    from pack.fantasyid_core.dit.injection import Injection
    from pack.nodes.host.options import add_injection

    vertex_tokens = host.tokens[round(len(host.tokens) * 36 / 115) :]
    noise = torch.randn(host.noise.shape[2], *vertex_tokens.shape, generator=torch.Generator().manual_seed(3))
    return add_injection(model, Injection(host.tokens, frame_tokens=vertex_tokens + 0.1 * noise))


HALF = {"steps": 9, "amortised": True, "note": "half of the steps skipped"}
MODES = (
    Mode("CogVideoX alone, diffusers, eager", baseline(baselines.plain)),
    Mode("CogVideoX alone, diffusers, compiled", baseline(baselines.plain, compiled=True), cuda=True),
    Mode("ConsisID, diffusers, eager", baseline(baselines.consisid), full_size=True),
    Mode(AS_RELEASED, baseline(baselines.as_released)),
    Mode("ours without identity, eager", ours(identity=False)),
    Mode("ours, exact, eager", ours()),
    Mode("ours, exact, identity in half the picture", ours(in_half_the_picture, identity=False)),
    Mode("ours, exact, a face that acts", ours(acting, identity=False)),
    Mode("ours, exact, compiled by the host's node", compiling.rows, cuda=True),
    Mode("ours, exact, 12 GiB free", ours(free=12), cuda=True),
    Mode("ours, exact, 7 GiB free", ours(free=7), cuda=True),
    Mode("ours, exact, 7 GiB free, compiled", ours(Host.compiled, free=7), cuda=True),
    Mode("ours, fp8_e4m3fn storage", ours(weight_dtype="fp8_e4m3fn")),
    Mode("ours, fp8 matmuls", ours(faster(fp8_products=True)), cuda=True),
    Mode("ours, fp8 matmuls and storage", ours(faster(fp8_products=True), weight_dtype="fp8_e4m3fn"), cuda=True),
    Mode("ours, step cache", ours(half_of_the_steps(), **HALF), cuda=True),
    Mode("ours, step cache and fp8 matmuls", ours(half_of_the_steps(fp8_products=True), **HALF), cuda=True),
    *(Mode(f"ours, ComfyUI's {f}", quantised.rows, cuda=True, by_name=True) for f in quantised.FORMATS),
    Mode("ours, long video", long_video.rows),
    Mode("whole run", whole_run.rows),
    Mode("loading, memory of the computer", computer_memory.rows, full_size=True),
    *(
        Mode(f"whole run, {gib} GiB free", whole_run.on_a_card_with(gib), cuda=True, by_name=True)
        for gib in whole_run.SMALLER_AND_SMALLER
    ),
)
