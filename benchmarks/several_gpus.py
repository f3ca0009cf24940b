"""A step on several GPUs: `torchrun --nproc-per-node N -m benchmarks.several_gpus [--guidance 2] [--context N]`.

Every process first computes it alone, then all together; the outputs are compared. `--smoke` runs on the CPU.
"""

import argparse
import os
import sys

import torch
import torch.distributed as dist

from fantasyid_core.dit.injection import Injection, InjectionRun
from fantasyid_core.dit.parallel import spread
from fantasyid_core.dit.transformer import from_published

from . import report
from .measure import Row, relative_error, time_step
from .workload import RELEASE, SMOKE, random_inputs, random_published


@torch.no_grad()
def measure(arguments: argparse.Namespace, device: str) -> list[Row]:
    """Alone and together, the latter with the error to the former."""
    work = SMOKE if arguments.smoke else RELEASE
    inputs = random_inputs(work, device)
    model = from_published(work.config, random_published(work)).to(device)
    run = InjectionRun([Injection(inputs.tokens)])
    rotary = model.rotary_embedding(*work.latents, device)

    def step() -> torch.Tensor:
        return model(inputs.latents, inputs.text, inputs.timestep, rotary=rotary, injector=run)

    rows = [time_step("one GPU", step)]
    alone = step()
    spread(model, arguments.guidance, arguments.context, uneven=arguments.uneven)
    row = time_step(f"guidance {arguments.guidance} × context {arguments.context}", step)
    return [*rows, Row(row.name, row.milliseconds, row.peak, relative_error(step(), alone))]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.several_gpus", description=__doc__.splitlines()[0])
    parser.add_argument("--guidance", type=int, default=1, choices=(1, 2), help="guidance branches in own processes")
    parser.add_argument("--context", type=int, default=1, help="processes that share out the video's tokens")
    parser.add_argument("--uneven", action="store_true", help="the tokens are not divisible by --context")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU")
    arguments = parser.parse_args()
    device = "cpu" if arguments.smoke else f"cuda:{os.environ['LOCAL_RANK']}"
    if not arguments.smoke:
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if arguments.smoke else "nccl")
    rows = measure(arguments, device)
    if dist.get_rank() == 0:
        print("\n".join(map(report.line, rows)))
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
