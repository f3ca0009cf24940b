"""Layer-aware injection: every DiT block's own cross-attention to the ID descriptor (paper, section 3.3).

The descriptor is a constant of the video, so the keys and values of all layers are computed once per sampling run.
Where the face acts, each latent frame has vertex tokens of its own beside the face tokens, which all frames share.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import IdentityError
from ..operations import TORCH, Operations
from .attention import Attend, scaled_dot_product
from .kernels import Norm, WeightsOf, layer_norm, own_weights
from .region import EVERYWHERE, Region, TokenGrid, token_weights

KeysValues = tuple[Tensor, Tensor]
"""Of an identity, each (B or 1, heads, N, head_dim), or (B or 1, T, heads, N, head_dim) where each of T latent frames
has its own."""


class LayerAttention(nn.Module):
    """Cross-attention of one DiT block's visual tokens to the identity tokens (release: `LayerAttention`).

    Args:
        dim: width of the visual tokens (release: 3072).
        token_dim: K, width of the identity tokens (2048).
        inner_dim: heads × head_dim (2048).
        head_dim: 128 in the release.
        operations: the layers that it is built from.
    """

    def __init__(self, dim: int, token_dim: int, inner_dim: int, head_dim: int = 128, operations: Operations = TORCH):
        super().__init__()
        self.head_dim = head_dim
        self.norm1 = operations.LayerNorm(token_dim)
        self.norm2 = operations.LayerNorm(dim)
        self.to_q = operations.Linear(dim, inner_dim, bias=False)
        self.to_kv = operations.Linear(token_dim, 2 * inner_dim, bias=False)
        self.to_out = operations.Linear(inner_dim, dim, bias=False)

    def keys_values(self, tokens: Tensor) -> KeysValues:
        """Identity tokens (B, N, K), or (B, T, N, K) of T latent frames, → their keys and values."""
        if tokens.ndim == 4:
            k, v = (x.unflatten(0, tokens.shape[:2]) for x in self.keys_values(tokens.flatten(0, 1)))
            return k, v
        k, v = self.to_kv(self.norm1(tokens)).unflatten(2, (2, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        return k.contiguous(), v.contiguous()

    def forward(
        self,
        hidden_states: Tensor,
        identity: KeysValues | Tensor,
        attend: Attend = scaled_dot_product,
        weights_of: WeightsOf = own_weights,
    ) -> Tensor:
        """Visual tokens (B, L, dim) → what the identity adds to them, (B, L, dim).

        Args:
            identity: its keys and values, or its tokens as `keys_values` takes them where these are not used twice.
                With those of T latent frames the visual tokens are T equal parts, and each sees its own.
            attend: the attention to compute with.
            weights_of: weight and bias of a layer norm, where a caller holds them elsewhere or patches them.
        """
        keys_values = self.keys_values(identity) if isinstance(identity, Tensor) else identity
        normed = layer_norm(hidden_states, Norm(*weights_of(self.norm2, hidden_states), self.norm2.eps))
        queries = self.to_q(normed).unflatten(2, (-1, self.head_dim))
        k, v = keys_values
        if k.ndim == 5:  # frames are samples of one attention
            queries = queries.unflatten(1, (k.shape[1], -1)).flatten(0, 1)
            k, v = (x.expand(len(hidden_states), -1, -1, -1, -1).flatten(0, 1) for x in keys_values)
        q = queries.transpose(1, 2)
        k, v = (x.expand(len(q), -1, -1, -1) for x in (k, v))
        return self.to_out(attend(q, k, v).reshape(*hidden_states.shape[:2], -1))


@dataclass(frozen=True, eq=False)
class Injection:
    """One identity applied to a model, with the artist's settings.

    Attributes:
        tokens: (N, K) the ID descriptor: face tokens, then vertex tokens.
        strength: factor on what every layer adds; 1 as trained, 0 off.
        start, end: part of the sampling run in which it acts, 0 first step … 1 last, both ends included.
        layer_weights: one factor per injection layer, or empty for 1 everywhere.
        guide_identity: whether the unconditional branch goes without it, so that guidance leads to the person as to the
            prompt; in the release both branches have it.
        region: where in the picture and when in the video it acts.
        frame_tokens: (T, M, K) in the place of the last M of `tokens`, of each latent frame of the video its own; the
            last one's hold in a video of more than T. None: `tokens` in all frames.

    Raises:
        IdentityError: the part of the run is none.
    """

    tokens: Tensor
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    layer_weights: tuple[float, ...] = ()
    guide_identity: bool = False
    region: Region = EVERYWHERE
    frame_tokens: Tensor | None = None

    def __post_init__(self):
        if not 0 <= self.start <= self.end <= 1:
            raise IdentityError(
                f"The identity would set in at {self.start} of the sampling run and end at {self.end}, so it would "
                "never act. start_percent and end_percent must lie in 0 … 1, start_percent not after end_percent; "
                "set 0 and 1 for the whole run. Strength 0 switches the identity off."
            )

    @property
    def constant_tokens(self) -> Tensor:
        """(N or N − M, K) those that all frames share."""
        return self.tokens if self.frame_tokens is None else self.tokens[: -self.frame_tokens.shape[1]]

    def is_active(self, progress: float) -> bool:
        """Whether `progress` lies in its part of the run."""
        return self.start <= progress <= self.end

    def weight(self, layer: int, progress: float) -> float:
        """Factor on injection layer `layer` at `progress` (0 first step … 1 last)."""
        if not self.is_active(progress):
            return 0.0
        return self.strength * (self.layer_weights[layer] if self.layer_weights else 1.0)


class Injector(Protocol):
    """What the transformer asks for identities, after each block that has an injection layer."""

    def add_to(self, hidden_states: Tensor, layer: int, attention: LayerAttention, progress: float) -> Tensor:
        """Visual tokens (B, L, dim) after one block → the same with every identity added by injection layer `layer`."""
        ...


class InjectionRun:
    """Identities over one sampling run. Holds what is constant in it: the keys and values of every layer.

    Make a new one for every run: a LoRA or another model changes the layers that the keys and values come from.

    Args:
        keep: False where a caller changes weights in the middle of a run; keys and values are then computed every time.
    """

    def __init__(self, injections: Sequence[Injection], keep: bool = True):
        self.injections = tuple(injections)
        self._keep = keep
        self._keys_values: dict[tuple, KeysValues] = {}
        self._token_weights: dict[tuple, list[Tensor | None]] = {}

    @property
    def depends_on_progress(self) -> bool:
        """Whether an identity acts on a part of the run only."""
        return any(i.start > 0 or i.end < 1 for i in self.injections)

    def add_to(
        self,
        hidden_states: Tensor,
        layer: int,
        attention: LayerAttention,
        progress: float,
        *,
        grid: TokenGrid | None = None,
        unconditional: Sequence[bool] = (),
        attend: Attend = scaled_dot_product,
        weights_of: WeightsOf = own_weights,
    ) -> Tensor:
        """Visual tokens (B, L, dim) after one block → the same with every identity added by injection layer `layer`.

        Args:
            grid: where these tokens are; without it every identity acts everywhere, and they are those of as many
                latent frames as there are `frame_tokens`.
            unconditional: for each of the equal parts that the batch is made of, whether it is an unconditional branch;
                empty: none is.
            attend, weights_of: see `LayerAttention.forward`.
        """
        added = hidden_states
        token_weights = self._token_weights_at(grid, hidden_states)
        for i, injection in enumerate(self.injections):
            weight = injection.weight(layer, progress)
            if weight == 0.0:
                continue
            identity = self._keys_values_of(i, attention, hidden_states, grid)
            skip_mask = unconditional if injection.guide_identity and any(unconditional) else (False,)
            parts = zip(added.chunk(len(skip_mask)), hidden_states.chunk(len(skip_mask)), skip_mask, strict=True)
            summed = [
                x if skip else _add(x, attention(before, identity, attend, weights_of), weight, token_weights[i])
                for x, before, skip in parts
            ]
            added = summed[0] if len(summed) == 1 else torch.cat(summed)
        return added

    def _token_weights_at(self, grid: TokenGrid | None, like: Tensor) -> list[Tensor | None]:
        """For each identity (L, 1) or None, see `region.token_weights`."""
        if grid is None:
            return [None] * len(self.injections)
        key = (grid, like.device, like.dtype)
        if key not in self._token_weights:
            found = token_weights([injection.region for injection in self.injections], grid)
            self._token_weights[key] = [None if weights is None else weights.to(like) for weights in found]
        return self._token_weights[key]

    def _keys_values_of(self, i: int, attention: LayerAttention, like: Tensor, grid: TokenGrid | None) -> KeysValues:
        injection = self.injections[i]
        key = (i, attention, like.device, like.dtype)  # a run may lead through two models
        constant = self._kept(key, lambda: attention.keys_values(injection.constant_tokens[None].to(like)))
        if injection.frame_tokens is None:
            return constant
        frames = _frames_of(injection.frame_tokens, grid)

        def compute() -> KeysValues:
            return attention.keys_values(frames[None].to(like))

        # Of all windows of a long video they would fill the memory: 27 MB a latent frame of the release.
        moving = compute() if grid is not None and grid.window else self._kept((*key, len(frames)), compute)
        k, v = (_beside(one, own) for one, own in zip(constant, moving, strict=True))
        return k, v

    def _kept(self, key: tuple, compute: Callable[[], KeysValues]) -> KeysValues:
        if key in self._keys_values:
            return self._keys_values[key]
        keys_values = compute()
        if self._keep:
            self._keys_values[key] = keys_values
        return keys_values


def _frames_of(frame_tokens: Tensor, grid: TokenGrid | None) -> Tensor:
    """Tokens (T, M, K) of a performance → of the latent frames of a prediction; the last ones hold."""
    if grid is None or (not grid.window and grid.frames == len(frame_tokens)):
        return frame_tokens
    wanted = grid.window or range(grid.frames)
    return frame_tokens[[min(i, len(frame_tokens) - 1) for i in wanted]]


def _beside(constant: Tensor, moving: Tensor) -> Tensor:
    """(1, heads, N, D) of all frames and (1, T, heads, M, D) of each → (1, T, heads, N + M, D)."""
    return torch.cat([constant[:, None].expand(-1, moving.shape[1], -1, -1, -1), moving], 3)


def _add(hidden_states: Tensor, added: Tensor, weight: float, token_weights: Tensor | None) -> Tensor:
    """Visual tokens (B, L, dim) and `weight` times what an identity adds, by token where (L, 1) weights are given."""
    if token_weights is None:
        return torch.add(hidden_states, added, alpha=weight)
    return torch.addcmul(hidden_states, added, token_weights, value=weight)


@dataclass(frozen=True, eq=False)
class BatchInjector:
    """The identities of a run for one batch: an `Injector`.

    Attributes:
        injections: the identities, with what is constant over the run.
        grid, unconditional, attend, weights_of: see `InjectionRun.add_to`.
    """

    injections: InjectionRun
    grid: TokenGrid | None = None
    unconditional: tuple[bool, ...] = ()
    attend: Attend = scaled_dot_product
    weights_of: WeightsOf = own_weights

    def add_to(self, hidden_states: Tensor, layer: int, attention: LayerAttention, progress: float) -> Tensor:
        """See `Injector`."""
        return self.injections.add_to(
            hidden_states,
            layer,
            attention,
            progress,
            grid=self.grid,
            unconditional=self.unconditional,
            attend=self.attend,
            weights_of=self.weights_of,
        )


class SampleInjector:
    """One identity per sample of a batch, as in training: an `Injector`.

    Without gradients keys and values are computed once per layer: make a new one where the layers have changed.

    Args:
        tokens: (B, N, K), or (B, T, N, K) of each latent frame its own.
        strength: (B,) factor on what is added, 0 for none; all are added as they are by default.
        shared_layer: the injection layer to use for all blocks, if there is one.
    """

    def __init__(self, tokens: Tensor, strength: Tensor | None = None, shared_layer: LayerAttention | None = None):
        self._tokens, self._shared_layer = tokens, shared_layer
        self._strength = None if strength is None else strength[:, None, None]
        self._keys_values: dict[int, KeysValues] = {}

    def add_to(self, hidden_states: Tensor, layer: int, attention: LayerAttention, progress: float) -> Tensor:
        """See `Injector`."""
        attention = self._shared_layer or attention
        added = attention(hidden_states, self._identity(layer, attention, hidden_states))
        return hidden_states + (added if self._strength is None else self._strength.to(added) * added)

    def _identity(self, layer: int, attention: LayerAttention, like: Tensor) -> KeysValues | Tensor:
        tokens = self._tokens.to(like)
        if torch.is_grad_enabled():
            return tokens
        if layer not in self._keys_values:
            self._keys_values[layer] = attention.keys_values(tokens)
        return self._keys_values[layer]


def check(injection: Injection, layers: nn.ModuleList) -> None:
    """Raise IdentityError where an identity or its layer weights do not fit a model's injection layers."""
    if not len(layers):
        raise IdentityError(
            "This model has no identity injection layers (no 'layer_attention' tensors). Load a FantasyID transformer; "
            "a plain CogVideoX cannot take an identity."
        )
    if not math.isfinite(injection.strength):
        raise IdentityError(
            f"The identity's strength must be a finite number; got {injection.strength}. Set it to 1, as trained."
        )
    first: Any = layers[0]
    width = first.norm1.weight.shape[0]
    if injection.tokens.shape[-1] != width:
        raise IdentityError(
            f"The identity has tokens of width {injection.tokens.shape[-1]}, but this model expects {width}: it was "
            "made with another model's identity encoder. Run Feature Fusion again with the encoder of this model."
        )
    frame_tokens = injection.frame_tokens
    if frame_tokens is not None and not (
        frame_tokens.ndim == 3
        and frame_tokens.shape[-1] == width
        and len(frame_tokens)
        and 0 < frame_tokens.shape[1] <= len(injection.tokens)
    ):
        raise IdentityError(
            f"The identity's tokens of single frames have shape {tuple(frame_tokens.shape)}; expected (frames, at most "
            f"{len(injection.tokens)}, {width}). Run Feature Fusion again with the encoder of this model."
        )
    if injection.layer_weights and len(injection.layer_weights) != len(layers):
        raise IdentityError(
            f"{len(injection.layer_weights)} layer weights were given for {len(layers)} injection layers; "
            "give one per layer, or none for 1 everywhere."
        )


def parse_curve(text: str, layers: int) -> tuple[float, ...]:
    """Layer weights from an artist's text: '' → none; '1', '0.5, 1, 0.5' → stretched linearly over the layers.

    Raises:
        IdentityError: something in it is not a finite number.
    """
    numbers = text.replace(",", " ").split()
    try:
        points = [float(word) for word in numbers]
    except ValueError as error:
        raise IdentityError(
            f"Layer weights are numbers separated by commas, such as '0.5, 1, 1'; got '{text}'. "
            "Write them so, or leave the field empty."
        ) from error
    return stretch(points, layers)


def stretch(points: Sequence[float], layers: int) -> tuple[float, ...]:
    """Control points → one weight per layer, linear in between; no points → () (1 everywhere)."""
    curve = torch.tensor(list(points), dtype=torch.float64)
    if not curve.isfinite().all():
        raise IdentityError(
            f"Layer weights must be finite numbers; got {list(points)}. Set them between 0 and 2; 1 is as trained."
        )
    if not len(curve):
        return ()
    if len(curve) == 1:
        return (curve.item(),) * layers
    return tuple(F.interpolate(curve[None, None], layers, mode="linear", align_corners=True)[0, 0].tolist())
