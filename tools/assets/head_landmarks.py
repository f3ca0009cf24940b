"""Which vertices of the head are the 68 landmarks, found from its shape. Used by `build_head` only."""

from __future__ import annotations

import numpy as np

# x of the person's left half (positive) and y, in metres from the middle of the eyes, on the base mesh.
BROW = ((0.013, 0.0195), (0.0215, 0.0225), (0.030, 0.0235), (0.0385, 0.0215), (0.046, 0.0155))
BRIDGE = ((0.0, 0.0), (0.0, -0.012), (0.0, -0.024))
NOSE_TIP = 0.004  # detectors see the tip of the nose above its foremost point
INNER_CORNER = (0.0173, -0.0012)
LID_ANGLES = (0, 50, 130, 230, 310)  # outer corner, upper lid, lower lid


def landmarks(points: np.ndarray, parts: np.ndarray, face: np.ndarray, lips: np.ndarray, jaw_drop: np.ndarray) -> list:
    """68 vertex numbers: the detector's five, jaw line 17, brows 10, nose 8 (without its tip), eyes 12, mouth 16
    (without its corners), each from the person's right to left as is usual.

    Args:
        points: (V, 3) the symmetric base mesh, metres, the middle of the eyes at the origin, y up, z out of the face.
        parts: (V,) 0 skin, 1 left and 2 right eye.
        face, lips: (V,) 0…1, masks.
        jaw_drop: (V,) m, how far each vertex sinks when the jaw opens.
    """
    x, y, z = points.T
    skin = (parts == 0) & (face > 0.3)
    taken = np.zeros(len(points), bool)

    def nearest(target: tuple[float, float], among: np.ndarray) -> int:
        """Nearest in the frontal picture; of folds that lie behind one another the foremost."""
        distance = np.hypot(x - target[0], y - target[1]) + 0.3 * (z[among].max() - z).clip(0)
        chosen = int(np.where(among & ~taken, distance, np.inf).argmin())
        taken[chosen] = True
        return chosen

    def mirrored(half: list[tuple[float, float]], among: np.ndarray) -> list[int]:
        """From the person's right to left; the half is given from the middle outwards."""
        return [nearest((-px, py), among) for px, py in reversed(half)] + [nearest(p, among) for p in half if p[0] > 0]

    iris = [int(np.flatnonzero(parts == eye)[-1]) for eye in (2, 1)]  # `build_head` put one there
    point = int(np.where(skin & (np.abs(x) < 0.004) & (y > -0.06) & (y < -0.02), z, -np.inf).argmax())
    tip = nearest((0.0, y[point] + NOSE_TIP), skin)
    mouth = skin & (lips > 0.6)
    right_corner = int(np.where(skin & (lips > 0.25), -x, -np.inf).argmax())
    mirror = np.linalg.norm(points - points[right_corner] * [-1, 1, 1], axis=1)
    corners = [right_corner, int(np.where(skin, mirror, np.inf).argmin())]
    middle = np.array([0, y[corners].mean()])

    angle = np.degrees(np.arctan2(y - middle[1] - 0.012, x))
    radius = np.hypot(x, y - middle[1] - 0.012)
    jaw = []
    for target in np.linspace(-174, -6, 17):
        jaw.append(int(np.where(skin & (np.abs(angle - target) < 4.5), radius, 0).argmax()))

    eyes = []
    for eye, side in ((2, -1), (1, 1)):
        centre = points[parts == eye].mean(0)
        lid = skin & (np.linalg.norm(points - centre, axis=1) < 0.022) & (z > centre[2])
        lid_angle = np.degrees(np.arctan2(y - centre[1], side * (x - centre[0]))) % 360
        distance = np.hypot(x - centre[0], y - centre[1])
        ring = []
        for target in LID_ANGLES:
            off = np.abs((lid_angle - target + 180) % 360 - 180)
            ring.append(int(np.where(lid & (off < 14), distance + off * 1e-4, np.inf).argmin()))
        outer, upper_outer, upper_inner, lower_inner, lower_outer = ring
        inner = nearest((side * INNER_CORNER[0], INNER_CORNER[1]), lid)
        # The usual order starts at the person's right end of the eye and runs over the upper lid.
        right_to_left = [outer, upper_outer, upper_inner, inner, lower_inner, lower_outer]
        eyes += right_to_left if side < 0 else [inner, upper_inner, upper_outer, outer, lower_outer, lower_inner]

    base = [(0.0, y[point] - 0.0125), (0.006, y[point] - 0.0105), (0.0125, y[point] - 0.0075)]
    nose = [nearest(p, skin) for p in BRIDGE] + mirrored(base, skin)

    lower = jaw_drop > 0.5 * jaw_drop[mouth].max()
    half = x[corners[1]]
    edge = {}
    for name, lip in (("upper", mouth & ~lower), ("lower", mouth & lower)):
        direction = 1 if name == "upper" else -1
        for inner in (False, True):
            row = []
            for share in (-0.4, 0, 0.4) if inner else (-0.66, -0.33, 0, 0.33, 0.66):
                near = lip & (np.abs(x - share * half) < 0.0035)
                front = near & (z > z[near].max() - (0.004 if inner else 0.012))
                row.append(int(np.where(front, direction * y * (-1 if inner else 1), -np.inf).argmax()))
            edge[name, inner] = row
    outer = edge["upper", False] + edge["lower", False][::-1]
    inner = edge["upper", True] + edge["lower", True][::-1]
    return [*iris, tip, *corners, *jaw, *mirrored(list(BROW), skin), *nose, *eyes, *outer, *inner]
