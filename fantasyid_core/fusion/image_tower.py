"""The image tower EVA02-CLIP-L/14-336 (Sun et al. 2023; Fang et al. 2023): face crop → patch features.

Of its hidden states only the fifth reaches the identity of the released model, so `last_hidden_state` stops there and
`from_state_dict(live_only=True)` leaves the rest unloaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import WeightsError
from ..io.weights import load_into
from ..operations import TORCH, Operations

PREFIX = "visual."  # of the tower in the published CLIP checkpoint; its text tower is not needed
HIDDEN_STATES = 5
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
HEAD_DIM = 64
ROPE_GRID, ROPE_BASE = 16, 10_000  # rotary positions count patches of the pre-training's 16 × 16 grid
EPS = 1e-6


@dataclass(frozen=True)
class TowerSizes:
    """Sizes of an image tower.

    Attributes:
        width: channels of its tokens; depth: blocks.
        grid: patches a side; patch: side of a patch, px.
        head_dim, mlp: widths of an attention head and inside the feed-forward.
        out: width of the pooled output.
    """

    width: int
    depth: int
    grid: int
    patch: int
    head_dim: int
    mlp: int
    out: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "TowerSizes":
        """Those of a tower's state dict. Raises KeyError, IndexError or ValueError where it is of another network."""
        width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
        patches, head_dim = tensors["rope.freqs_cos"].shape
        return cls(
            width=width,
            depth=len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
            grid=round(patches**0.5),
            patch=patch,
            head_dim=head_dim,
            mlp=tensors["blocks.0.mlp.w1.weight"].shape[0],
            out=tensors["head.weight"].shape[0],
        )


class PatchEmbed(nn.Module):
    """(B, 3, H, W) → (B, N, C), row by row."""

    def __init__(self, channels: int, patch: int, operations: Operations = TORCH):
        super().__init__()
        self.proj = operations.Conv2d(3, channels, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Rope(nn.Module):
    """Cosines and sines (N, head_dim) of the patches' rotary positions."""

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, patches: int, head_dim: int):
        super().__init__()
        self.register_buffer("freqs_cos", torch.empty(patches, head_dim))
        self.register_buffer("freqs_sin", torch.empty(patches, head_dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same with a row in front that leaves the class token unturned, on the device and in the dtype of `x`."""
        return F.pad(self.freqs_cos.to(x), (0, 0, 1, 0), value=1.0), F.pad(self.freqs_sin.to(x), (0, 0, 1, 0))


class Attention(nn.Module):
    """Self-attention with rotary positions, a bias on queries and values only, and a norm before the projection."""

    def __init__(self, channels: int, head_dim: int, operations: Operations = TORCH):
        super().__init__()
        self.head_dim = head_dim
        self.q_proj = operations.Linear(channels, channels, bias=False)
        self.k_proj = operations.Linear(channels, channels, bias=False)
        self.v_proj = operations.Linear(channels, channels, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(channels))
        self.v_bias = nn.Parameter(torch.zeros(channels))
        self.inner_attn_ln = operations.LayerNorm(channels, EPS)
        self.proj = operations.Linear(channels, channels)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = self.q_proj(x) + self.q_bias.to(x), self.k_proj(x), self.v_proj(x) + self.v_bias.to(x)
        q, k, v = (y.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for y in (q, k, v))
        x = F.scaled_dot_product_attention(apply_rope(q, rope), apply_rope(k, rope), v)
        return self.proj(self.inner_attn_ln(x.transpose(1, 2).flatten(2)))


class SwiGLU(nn.Module):
    """Gated feed-forward with a norm before the last layer."""

    def __init__(self, channels: int, hidden: int, operations: Operations = TORCH):
        super().__init__()
        self.w1 = operations.Linear(channels, hidden)
        self.w2 = operations.Linear(channels, hidden)
        self.ffn_ln = operations.LayerNorm(hidden, EPS)
        self.w3 = operations.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, channels: int, head_dim: int, hidden: int, operations: Operations = TORCH):
        super().__init__()
        self.norm1 = operations.LayerNorm(channels, EPS)
        self.attn = Attention(channels, head_dim, operations)
        self.norm2 = operations.LayerNorm(channels, EPS)
        self.mlp = SwiGLU(channels, hidden, operations)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attn(self.norm1(x), rope)
        return x + self.mlp(self.norm2(x))


class ImageTower(nn.Module):
    """Normalised images → hidden states. `from_state_dict` makes one with its weights.

    Args:
        live_only: leave out what comes after the fifth hidden state.
        operations: the layers that it is built from.

    Attributes:
        image_size: side of the images it takes, px (release: 336).
        taps: the blocks on entry to which the hidden states are taken (release: 4, 8, 12, 16, 20 of 24).
    """

    def __init__(self, sizes: TowerSizes, live_only: bool = False, operations: Operations = TORCH):
        super().__init__()
        width, patches = sizes.width, sizes.grid**2
        self.taps = tuple(sizes.depth // 6 * (i + 1) for i in range(HIDDEN_STATES))
        self.image_size = sizes.grid * sizes.patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + patches, width))
        self.patch_embed = PatchEmbed(width, sizes.patch, operations)
        self.rope = Rope(patches, sizes.head_dim)
        depth = self.taps[-1] if live_only else sizes.depth
        self.blocks = nn.ModuleList(Block(width, sizes.head_dim, sizes.mlp, operations) for _ in range(depth))
        self.norm = None if live_only else operations.LayerNorm(width, EPS)
        self.head = None if live_only else operations.Linear(width, sizes.out)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Images (B, 3, S, S) as `preprocess` makes them → all that the published tower gives.

        Returns:
            five hidden states (B, 1 + N, C), class token first, and the pooled output (B, K), `None` if live only.
        """
        x, rope, hidden = self._embed(images), self.rope(images), []
        for i, block in enumerate(self.blocks):
            if i in self.taps:
                hidden.append(x)
            x = block(x, rope)
        if self.head is None or self.norm is None:
            return [*hidden, x], None  # the fifth is what enters the first block left out
        return hidden, self.head(self.norm(x)[:, 0])

    def last_hidden_state(self, images: Tensor) -> Tensor:
        """The fifth hidden state alone (B, 1 + N, C), without the blocks after it."""
        x, rope = self._embed(images), self.rope(images)
        for block in self.blocks[: self.taps[-1]]:
            x = block(x, rope)
        return x

    def preprocess(self, crops: Tensor) -> Tensor:
        """Crops (N, H, W, 3) in 0…1 → (N, 3, S, S), resized (bicubic, antialiased), normalised as for CLIP."""
        x, size = crops.movedim(-1, 1), (self.image_size,) * 2
        if x.shape[2:] != size:
            x = F.interpolate(x, size, mode="bicubic", antialias=True)
        return (x - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(STD)[:, None, None]

    def _embed(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images)
        return torch.cat([self.cls_token.to(x).expand(len(x), -1, -1), x], 1) + self.pos_embed.to(x)

    @classmethod
    def from_state_dict(
        cls, tensors: dict[str, Tensor], live_only: bool = False, operations: Operations = TORCH
    ) -> "ImageTower":
        """Build from the published CLIP checkpoint or its image tower; sizes are read from the tensors.

        Args:
            tensors: of `EVA02_CLIP_L_336_psz14_s6B.pt` (prefix `visual.`) or without prefix. Their dtype is kept.
            live_only: leave out what comes after the fifth hidden state.
            operations: the layers that it is built from.

        Raises:
            WeightsError: tensors are missing, or the tower is of another kind.
        """
        state = {k.removeprefix(PREFIX): v for k, v in tensors.items() if k.startswith(PREFIX)} or dict(tensors)
        state = {name: tensor for name, tensor in state.items() if ".attn.rope." not in name}  # copies of `rope`
        try:
            head_dim = state["rope.freqs_cos"].shape[1] if "rope.freqs_cos" in state else HEAD_DIM
            # Constructed, as files hold them in half precision.
            state["rope.freqs_cos"], state["rope.freqs_sin"] = rotary(state["pos_embed"].shape[1] - 1, head_dim)
            with torch.device("meta"):
                module = cls(TowerSizes.of(state), live_only, operations)
        except (KeyError, ValueError, IndexError) as error:
            raise WeightsError(
                f"These weights are not of an EVA02-CLIP image tower ({error} is missing or odd). "
                "Download EVA02_CLIP_L_336_psz14_s6B.pt."
            ) from error
        if module.taps[0] == 0:
            raise WeightsError(
                "This image tower has fewer than 6 blocks; expected EVA02-CLIP-L/14-336, which has 24. "
                "Download that one."
            )
        expected = module.state_dict()
        load_into(
            module, {n: t for n, t in state.items() if n in expected or not live_only}, what="EVA02-CLIP image tower"
        )
        return module.eval().requires_grad_(False)


def rotary(patches: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (patches, head_dim) of a square grid.

    The first half of the channels turns with the row, the second with the column; each angle serves two neighbours.
    """
    side = round(patches**0.5)
    frequency = 1 / ROPE_BASE ** (torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2))
    angle = torch.outer(torch.arange(side) / side * ROPE_GRID, frequency).repeat_interleave(2, 1)
    rows, columns = angle[:, None].expand(-1, side, -1), angle[None].expand(side, -1, -1)
    grid = torch.cat([rows, columns], -1).flatten(0, 1)
    return grid.cos(), grid.sin()


def apply_rope(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate neighbouring channel pairs of (B, heads, N, head_dim)."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * rope[0] + torch.stack([-odd, even], -1).flatten(-2) * rope[1]
