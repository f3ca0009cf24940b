"""Which step cache errs least for what it skips, on FantasyID-nano in the host: `python -m benchmarks.caches`.

Our first-block cache, the host's EasyCache and LazyCache, and fewer steps, each against the exact latents. The steps'
time says little on so small a model; how many are skipped and how far the latents stray does.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from .measure import relative_error, synchronize

OURS, EASY, LAZY = (0.1, 0.15, 0.2, 0.25), (0.03, 0.06, 0.1, 0.2), (0.1, 0.2)
START, END = 0.1, 1.0  # the same for all: which part of the run may be skipped


class Nano:
    """The shipped model in the host, with a few people and prompts that it never saw."""

    def __init__(self, people: int, seed: int, base: Path, cpu: bool):
        from fantasyid_lab import nano
        from fantasyid_lab.evaluation import cases, generate
        from tools.in_process import start

        start(base, *(["--cpu"] if cpu else []))
        from pack.fantasyid_core.dit.injection import Injection
        from pack.nodes.host.options import add_injection, transformer_of
        from pack.nodes.host.text import encode_text
        from pack.nodes.loading import FantasyIDLoadModel
        from pack.nodes.text import FantasyIDLoadTextEncoder

        drawn = cases.draw(max(people, 2), seed, nano.FRAMES)[:people]
        photos = cases.show([case.reference for case in drawn]).frames[:, 0]
        generator = generate.load(nano.SHIPPED)
        identities = [generator.identity(generate.reference(photo)) for photo in photos]
        plain, _, _ = FantasyIDLoadModel.run(nano.SHIPPED.name, "default").args
        (clip,) = FantasyIDLoadTextEncoder.run(nano.SHIPPED.name).args
        self.models = [add_injection(plain, Injection(identity.tokens)) for identity in identities]
        self.prompts = [encode_text(clip, case.target.caption) for case in drawn]
        self.negative = encode_text(clip, "")
        self.size = (1, 16, (nano.FRAMES - 1) // 4 + 1, nano.HEIGHT // 8, nano.WIDTH // 8)
        self.evaluations = 0
        transformer_of(plain).transformer_blocks[-1].register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.evaluations += 1

    def videos(self, change: Callable, scheduler: str, steps: int) -> tuple[list[Tensor], int, float]:
        """Latents of every person, how often the last block ran, and the seconds."""
        import comfy.samplers
        from pack.nodes.host.sampler import ReleaseSampler
        from pack.nodes.sampling import trailing_sigmas

        self.evaluations, latents, start = 0, [], time.perf_counter()
        for number, (model, prompt) in enumerate(zip(self.models, self.prompts, strict=True)):
            changed = change(model)
            guider = comfy.samplers.CFGGuider(changed)
            guider.set_conds(prompt, self.negative)
            guider.set_cfg(6.0)
            generator = torch.Generator().manual_seed(number)
            noise = torch.randn(self.size, generator=generator)
            sampler = ReleaseSampler(scheduler, steps, generator)
            sigmas = trailing_sigmas(changed, steps)
            latents.append(guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, seed=0, disable_pbar=True))
        synchronize()
        return latents, self.evaluations, time.perf_counter() - start


def caches() -> Iterator[tuple[str, Callable]]:
    """Names, and what makes them of a MODEL."""
    from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
    from pack.fantasyid_core.dit.step_cache import CacheSettings
    from pack.nodes.host.options import set_step_cache

    for threshold in OURS:
        settings = CacheSettings(threshold, START, END)
        yield f"first block, {threshold}", lambda model, settings=settings: set_step_cache(model, settings)
    for name, node, thresholds in (("EasyCache", EasyCacheNode, EASY), ("LazyCache", LazyCacheNode, LAZY)):
        for threshold in thresholds:
            yield (
                f"{name}, {threshold}",
                lambda model, node=node, t=threshold: node.execute(model, t, START, END, False).args[0],
            )


@torch.no_grad()
def table(host: Nano, scheduler: str, steps: int) -> None:
    """Prints a row for each cache as it is measured."""
    exact, full, seconds = host.videos(lambda model: model, scheduler, steps)
    print(f"| {scheduler}, {steps} steps | skipped | error to exact | seconds |\n| --- | --- | --- | --- |")
    print(f"| exact | 0 % | 0 | {seconds:.1f} |", flush=True)

    def row(name: str, change: Callable, of: int = steps) -> None:
        latents, ran, took = host.videos(change, scheduler, of)
        error = sum(map(relative_error, latents, exact)) / len(latents)
        print(f"| {name} | {100 * (1 - ran / full):.0f} % | {error:.4f} | {took:.1f} |", flush=True)

    for name, change in caches():
        row(name, change)
    if scheduler == "ddim":  # with dpm other steps draw other noise: another video, not a worse one
        for share in (0.7, 0.5):
            row(f"only {int(share * steps)} steps", lambda model: model, int(share * steps))
    print()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.caches", description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=4, help="videos that each row is the mean of")
    parser.add_argument("--seed", type=int, default=0, help="which people and prompts")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--scheduler", nargs="+", default=["ddim", "dpm"], choices=["ddim", "dpm"])
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    with tempfile.TemporaryDirectory() as base:
        host = Nano(arguments.people, arguments.seed, Path(base), not torch.cuda.is_available())
        print(f"FantasyID-nano, {arguments.people} people, {card}, torch {torch.__version__}\n")
        for scheduler in arguments.scheduler:
            table(host, scheduler, arguments.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
