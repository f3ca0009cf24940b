"""Videos of one, two and four times the trained length, in windows: does time grow with the length, and memory not?"""

from collections.abc import Iterator

import torch

from .bench import Bench
from .measure import Row

STEPS = 3  # the last one counts


def rows(bench: Bench, name: str) -> Iterator[Row]:
    """One step of each length, with FantasyID Long Video as it stands in the menu."""
    host, (known, height, width) = bench.host, bench.work.video
    host.forget()  # the first mention of the host starts it; `pack` can be imported from then on
    from pack.fantasyid_core.video.latents import latent_size
    from pack.nodes.long_video import FantasyIDLongVideo

    (model,) = FantasyIDLongVideo.run(host.model(), 0, 12 if known > 25 else 4, "as trained").args
    handler, short = model.model_options["context_handler"], host.noise
    try:
        for frames in (known, 2 * known - 1, 4 * known - 3):
            latents = latent_size(frames, height, width)
            windows = handler.context_schedule.func(latents[0], handler, {})
            host.noise = torch.randn(1, 16, *latents, generator=torch.Generator().manual_seed(2))
            note = f"{len(windows)} windows of {len(windows[0])} latents"
            yield host.run(f"{name}, {frames} frames", model, steps=STEPS, note=note)[0]
    finally:
        host.noise, model = short, None
        host.forget()
