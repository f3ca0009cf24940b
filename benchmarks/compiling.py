"""Compiled by the host: seconds of the first step, of the later ones, and what compiles when something is varied."""

from collections.abc import Iterator

import torch

from .bench import Bench
from .measure import Row
from .ours import STEPS


def rows(bench: Bench, name: str) -> Iterator[Row]:
    """The exact mode, then the same with another prompt, noise, strength and number of identity tokens."""
    host, exact = bench.host, bench.exact(STEPS)  # before the pack is imported: it comes with the host
    from pack.fantasyid_core.dit.injection import Injection
    from pack.nodes.host.options import add_injection

    plain = host.model(identity=False)
    noise, text = host.noise, host.text
    before = _graphs()
    try:
        model = host.compiled(add_injection(plain, Injection(host.tokens)))
        row, _ = host.run(name, model, exact, tell_first=True)
        count, before = _graphs() - before, _graphs()
        host.noise, host.text = noise.flip(0, 2), text.flip(1)
        other = Injection(torch.cat([host.tokens, host.tokens[:9]]), 0.7, 0.1, 0.9)
        host.run(name, host.compiled(add_injection(plain, other)), steps=4)
        again = f"{count} graphs, {_graphs() - before} more for another prompt, seed, strength, identity"
        yield Row(row.name, row.milliseconds, row.peak, row.error, "; ".join(filter(None, (row.note, again))))
    finally:
        host.noise, host.text = noise, text
        model = plain = None
        host.forget()


def _graphs() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]
