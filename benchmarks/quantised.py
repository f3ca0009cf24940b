"""A transformer in ComfyUI's quantised formats, computed by ComfyUI's kernels for this card."""

from collections.abc import Iterator
from dataclasses import replace

from .bench import Bench
from .measure import Row
from .ours import STEPS

FORMATS = ("float8_e4m3fn", "mxfp8", "int8_tensorwise", "nvfp4", "convrot_w4a4", "asym_w4a8_int8")


def rows(bench: Bench, name: str) -> Iterator[Row]:
    """One row; the format is the name's last word."""
    host, exact = bench.host, bench.exact(STEPS)
    from pack.tools.assets.quantise import quantise  # asks the host for its formats

    dit = quantise(bench.published.dit, name.split()[-1], bench.device)
    model = host.model(published=replace(bench.published, dit=dit))
    try:
        yield host.run(name, model, exact)[0]
    finally:
        model = None
        host.forget()
