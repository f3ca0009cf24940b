"""A curtain of hair about the head, down to the shoulders, that moves with it. Used by `build_head` only."""

from __future__ import annotations

import numpy as np

AXIS = -0.075  # z of the middle of the skull, metres from the eyes
TOP, BOTTOM = 0.075, -0.26
FRONT = 66  # degrees from straight ahead where the curtain begins on either side
COLUMNS, ROWS = 37, 14
_CLEARANCE, _WIDEST = 0.009, 0.112


def curtain(points: np.ndarray, skin: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The curtain about a head (V, 3), whose `skin` (V,) is not hair itself.

    Returns:
        vertices (K, 3); triangles (F, 3), counter-clockwise from outside; near (K, 6), the skin vertices whose shape a
        vertex follows; follows (K,) 0…1, how far it turns with the head.
    """
    surface = points[skin]
    azimuth = np.degrees(np.arctan2(surface[:, 0], surface[:, 2] - AXIS)) % 360
    radius = np.hypot(surface[:, 0], surface[:, 2] - AXIS)
    angles = np.linspace(FRONT, 360 - FRONT, COLUMNS)
    heights = TOP + (BOTTOM - TOP) * np.linspace(0, 1, ROWS) ** 1.1
    rows = []
    before = np.zeros(COLUMNS)
    for row, height in enumerate(heights):
        reach = np.zeros(COLUMNS)
        for column, angle in enumerate(angles):
            near = (np.abs(surface[:, 1] - height) < 0.018) & (np.abs((azimuth - angle + 180) % 360 - 180) < 11)
            reach[column] = radius[near].max() if near.any() else 0
        reach = np.minimum(reach + _CLEARANCE, _WIDEST)
        if row == 0:
            reach -= 0.016  # the upper edge hides in the hair on the skull
        reach = np.maximum(reach, before - 0.003)  # hair hangs: it hardly draws in again below the ears
        if height < -0.08:
            reach = np.minimum(reach, before - 0.0005)  # nor does it spread on the shoulders: it falls behind them
        before = reach = np.convolve(np.pad(reach, 2, mode="edge"), np.full(5, 0.2), "valid")
        turn = np.radians(angles)
        rows.append(np.stack([reach * np.sin(turn), np.full(COLUMNS, height), AXIS + reach * np.cos(turn)], 1))
    vertices = np.concatenate(rows)

    number = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)
    a, b, c, d = number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]
    triangles = np.concatenate([np.stack([a, c, b], -1).reshape(-1, 3), np.stack([b, c, d], -1).reshape(-1, 3)])
    distance = np.linalg.norm(vertices[:, None] - surface[None], axis=2)
    near = np.flatnonzero(skin)[np.argsort(distance, 1)[:, :6]]
    follows = np.clip((vertices[:, 1] - BOTTOM) / (-0.04 - BOTTOM), 0, 1) ** 0.8
    return vertices, triangles, near, follows
