"""Rotary positions of a video's tokens: cosines and sines along frames, rows and columns."""

import torch
from torch import Tensor

from .kernels import Rotary

BASE = 10000.0
Axes = tuple[float, float, float]  # frames, rows, columns


def rotary_embedding(
    head_dim: int,
    trained_grid: tuple[int, int],
    frames: int,
    grid: tuple[int, int],
    device: torch.device | str,
    scale: Axes = (1.0, 1.0, 1.0),
    shift: Axes = (0.0, 0.0, 0.0),
) -> Rotary:
    """Positions of `frames` × `grid` patches, rows and columns scaled to lie within `trained_grid` as in CogVideoX.

    Args:
        head_dim: D, of which a quarter turns with the frame, three eighths each with row and column.
        scale, shift: every position is multiplied by the one, then moved by the other.

    Returns:
        (frames · rows · columns, D) float32 cosines and sines, neighbouring channels in pairs.
    """
    rows, columns = grid
    (top, left), (bottom, right) = _centred(grid, trained_grid)
    positions = (
        torch.arange(frames, device=device, dtype=torch.float32),
        torch.linspace(top, bottom * (rows - 1) / rows, rows, device=device),
        torch.linspace(left, right * (columns - 1) / columns, columns, device=device),
    )
    widths = (head_dim // 4, head_dim // 8 * 3, head_dim // 8 * 3)
    angles = [
        _angles(factor * position + offset, width)
        for position, width, factor, offset in zip(positions, widths, scale, shift, strict=True)
    ]
    return _spread([angle.cos() for angle in angles]), _spread([angle.sin() for angle in angles])


def _angles(positions: Tensor, width: int) -> Tensor:
    """Positions (N,) → (N, width / 2)."""
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width
    return torch.outer(positions, 1.0 / BASE**exponents)


def _spread(axes: list[Tensor]) -> Tensor:
    """Frames (T, a), rows (H, b), columns (W, c) → (T · H · W, 2 (a + b + c))."""
    frames, rows, columns = (axis.repeat_interleave(2, dim=1) for axis in axes)
    whole = (len(frames), len(rows), len(columns), -1)
    parts = (frames[:, None, None], rows[None, :, None], columns[None, None])
    return torch.cat([part.expand(whole) for part in parts], -1).flatten(0, 2)


def _centred(grid: tuple[int, int], trained: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Top left and bottom right of the largest rectangle of this shape in the middle of the trained grid."""
    (rows, columns), (trained_rows, trained_columns) = grid, trained
    if rows / columns > trained_rows / trained_columns:
        height, width = trained_rows, round(trained_rows / rows * columns)
    else:
        height, width = round(trained_columns / columns * rows), trained_columns
    top, left = round((trained_rows - height) / 2.0), round((trained_columns - width) / 2.0)
    return (top, left), (top + height, left + width)
