"""The video transformer on several GPUs, by what diffusers and torch.distributed bring: one process a GPU (`torchrun`).

The host drives one GPU, so this is for programs on the core. Every process holds all weights, is called with the same
inputs and gets the same output.
"""

from functools import partial

import torch.distributed as dist
from diffusers import ContextParallelConfig, ParallelConfig
from diffusers.hooks.context_parallel import apply_context_parallel
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from .transformer import FantasyIDTransformer

BRANCHES = {"": {name: ContextParallelInput(0) for name in ("latents", "text", "timestep")}}
BRANCHES_TOGETHER = {"": ContextParallelOutput(0)}
TOKENS = {
    "transformer_blocks.0": {name: ContextParallelInput(1) for name in ("hidden_states", "encoder_hidden_states")},
    "transformer_blocks.*": {"image_rotary_emb": [ContextParallelInput(0)] * 2},
    "proj_out": ContextParallelOutput(1),
}


def spread(transformer: FantasyIDTransformer, guidance: int = 1, context: int = 1, uneven: bool = False) -> None:
    """Make a transformer share its work with the other processes, in place, for good.

    Call it in every process, after `torch.distributed.init_process_group` and after moving the model to its device.
    Identities take part as they are. A step cache does not: each process would decide for itself.

    Args:
        guidance: 2: each guidance branch in a process of its own (the batch must be even). One exchange a step.
        context: the video's tokens over so many processes, which exchange them in every block's attention (Ulysses).
            The heads (5B: 48) must be divisible by it.
        uneven: the tokens of text (226) and video (49 × 480 × 720: 17550) are not divisible by `context`. NCCL only.

    Raises:
        ValueError: `guidance` × `context` is not the number of processes, or the heads cannot be shared out.
    """
    heads = transformer.config.num_attention_heads
    if guidance * context != dist.get_world_size() or heads % context:
        raise ValueError(
            f"guidance {guidance} × context {context} must be the {dist.get_world_size()} processes that were started, "
            f"and context a divisor of the {heads} attention heads."
        )
    if guidance > 1:
        config = _config(transformer, (1, guidance, context), ("ring", "ulysses", "context"))
        apply_context_parallel(transformer, config, BRANCHES)
        apply_context_parallel(transformer, config, BRANCHES_TOGETHER)
    if context > 1:
        config = _config(transformer, (guidance, 1, context), ("guidance", "ring", "ulysses"), uneven)
        apply_context_parallel(transformer, config, TOKENS)
        for block in transformer.transformer_blocks:
            block.attend = partial(_attend, ParallelConfig(context_parallel_config=config))


def _config(
    transformer: FantasyIDTransformer, shape: tuple[int, ...], names: tuple[str, ...], uneven: bool = False
) -> ContextParallelConfig:
    """The processes on a grid of this shape, of which those along "ulysses" share out something."""
    device = transformer.device
    mesh = dist.device_mesh.init_device_mesh(device.type, shape, mesh_dim_names=names)
    config = ContextParallelConfig(ulysses_degree=shape[names.index("ulysses")], ulysses_anything=uneven)
    config.setup(dist.get_rank(), dist.get_world_size(), device, mesh)
    return config


def _attend(config: ParallelConfig, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`block.Attend` over the tokens of all processes; a permutation of them changes nothing."""
    q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    return dispatch_attention_fn(q, k, v, parallel_config=config).flatten(2)
