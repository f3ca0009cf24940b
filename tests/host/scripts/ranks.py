"""A tiny transformer spread over several processes against itself alone: `test_parallel` runs this once.

Argument: an empty folder. Forks the processes itself, so that torch is imported once.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
import torch.distributed as dist

from fantasyid_core.dit import parallel
from fantasyid_core.dit.injection import Injection, InjectionRun
from fantasyid_core.dit.transformer import FantasyIDTransformer, diffusers_arguments
from fantasyid_lab import nano

LAYOUTS = {"guidance": (2, 1), "context": (1, 2), "both": (2, 2)}
folder = Path(sys.argv[1])
config = {**nano.TINY.transformer, "num_attention_heads": 4}
torch.manual_seed(0)
torch.set_grad_enabled(False)
model = FantasyIDTransformer(
    **diffusers_arguments(config), injections=2, token_dim=32, layer_attention_dim=32, layer_attention_head_dim=16
).eval()
latents, text = torch.randn(2, 4, 32, 6, 10), torch.randn(2, 226, config["text_embed_dim"])
tokens, times = torch.randn(5, 32), torch.tensor([500, 500])


def predict() -> torch.Tensor:
    run = InjectionRun([Injection(tokens)])
    return model(latents, text, times, rotary=model.rotary_embedding(4, 6, 10, "cpu"), injector=run)


def refused() -> str:
    """What is said of more processes than there are."""
    dist.init_process_group("gloo", f"file://{folder / 'alone'}", rank=0, world_size=1)
    try:
        parallel.spread(model, guidance=2)
    except ValueError as error:
        return str(error)
    finally:
        dist.destroy_process_group()
    return ""


def difference(layout: str, rank: int) -> float:
    """Of the spread model's prediction to that of the model alone, in one of the processes."""
    guidance, context = LAYOUTS[layout]
    dist.init_process_group("gloo", f"file://{folder / layout}", rank=rank, world_size=guidance * context)
    alone, seen = predict(), []
    block = model.transformer_blocks[1]
    block.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["hidden_states"].shape), with_kwargs=True
    )
    parallel.spread(model, guidance, context)
    together = predict()
    batch, share, _ = seen[0]
    assert (batch, share) == (2 // guidance, 60 // context), "the work was not shared out"
    dist.destroy_process_group()
    return ((together - alone).norm() / alone.norm()).item()


found: dict = {}
for layout, (guidance, context) in LAYOUTS.items():
    children = {}
    for rank in range(guidance * context):
        children[rank] = os.fork()
        if not children[rank]:
            try:
                (folder / f"{layout}.{rank}").write_text(str(difference(layout, rank)))
                os._exit(0)
            except BaseException as error:
                sys.stderr.write(f"{layout} {rank}: {type(error).__name__}: {error}\n")
                os._exit(1)
    ended = [os.waitpid(child, 0)[1] for child in children.values()]
    assert not any(ended), f"{layout}: a process failed"
    found[layout] = [float((folder / f"{layout}.{rank}").read_text()) for rank in children]
found["refused"] = refused()
sys.stdout.write("\n" + json.dumps(found) + "\n")
