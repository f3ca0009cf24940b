"""Which vertices of the head are the 68 landmarks, found from its shape. Used by `build_head` only."""

from __future__ import annotations

import numpy as np

# x of the person's left half (positive) and y, in metres from the middle of the eyes, on the base mesh.
BROW = ((0.013, 0.0195), (0.0215, 0.0225), (0.030, 0.0235), (0.0385, 0.0215), (0.046, 0.0155))
BRIDGE = ((0.0, 0.0), (0.0, -0.012), (0.0, -0.024))
NOSE_BASE = ((0.0, 0.0125), (0.006, 0.0105), (0.0125, 0.0075))  # x, and below the foremost point of the nose
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
    head = _Head(points, parts, face, lips, jaw_drop)
    iris = [int(np.flatnonzero(parts == eye)[-1]) for eye in (2, 1)]  # `build_head` put one there
    tip = head.nearest((0.0, head.nose_tip + NOSE_TIP), head.skin)
    corners = head.mouth_corners()
    jaw = head.jaw(corners)
    eyes = [vertex for eye in (2, 1) for vertex in head.eye(eye)]
    nose = [head.nearest(p, head.skin) for p in BRIDGE]
    nose += head.mirrored([(dx, head.nose_tip - dy) for dx, dy in NOSE_BASE])
    mouth = head.mouth(corners)
    brows = head.mirrored(list(BROW))
    return [*iris, tip, *corners, *jaw, *brows, *nose, *eyes, *mouth]


class _Head:
    """The head's shape; a vertex serves as one landmark at most. Arguments as `landmarks` takes them."""

    def __init__(self, points: np.ndarray, parts: np.ndarray, face: np.ndarray, lips: np.ndarray, jaw_drop: np.ndarray):
        self.points, self.parts, self.lips, self.jaw_drop = points, parts, lips, jaw_drop
        self.x, self.y, self.z = points.T
        self.skin = (parts == 0) & (face > 0.3)
        self.used = np.zeros(len(points), bool)
        middle = self.skin & (np.abs(self.x) < 0.004) & (self.y > -0.06) & (self.y < -0.02)
        self.nose_tip = self.y[int(np.where(middle, self.z, -np.inf).argmax())]

    def nearest(self, target: tuple[float, float], among: np.ndarray) -> int:
        """Nearest in the frontal picture; of folds that lie behind one another the foremost."""
        distance = np.hypot(self.x - target[0], self.y - target[1]) + 0.3 * (self.z[among].max() - self.z).clip(0)
        chosen = int(np.where(among & ~self.used, distance, np.inf).argmin())
        self.used[chosen] = True
        return chosen

    def mirrored(self, half: list[tuple[float, float]]) -> list[int]:
        """From the person's right to left; the half is given from the middle outwards."""
        right = [self.nearest((-px, py), self.skin) for px, py in reversed(half)]
        return right + [self.nearest(p, self.skin) for p in half if p[0] > 0]

    def mouth_corners(self) -> list[int]:
        right = int(np.where(self.skin & (self.lips > 0.25), -self.x, -np.inf).argmax())
        mirror = np.linalg.norm(self.points - self.points[right] * [-1, 1, 1], axis=1)
        return [right, int(np.where(self.skin, mirror, np.inf).argmin())]

    def jaw(self, corners: list[int]) -> list[int]:
        """The outermost of 17 directions from the mouth's middle."""
        down = self.y - np.array([0, self.y[corners].mean()])[1] - 0.012
        angle, radius = np.degrees(np.arctan2(down, self.x)), np.hypot(self.x, down)
        return [
            int(np.where(self.skin & (np.abs(angle - target) < 4.5), radius, 0).argmax())
            for target in np.linspace(-174, -6, 17)
        ]

    def eye(self, eye: int) -> list[int]:
        """Six of the lids of an eye, 1 the person's left and 2 the right."""
        side = 1 if eye == 1 else -1
        centre = self.points[self.parts == eye].mean(0)
        dx, dy = self.x - centre[0], self.y - centre[1]
        lid = self.skin & (np.linalg.norm(self.points - centre, axis=1) < 0.022) & (self.z > centre[2])
        angle, distance = np.degrees(np.arctan2(dy, side * dx)) % 360, np.hypot(dx, dy)
        ring = []
        for target in LID_ANGLES:
            off = np.abs((angle - target + 180) % 360 - 180)
            ring.append(int(np.where(lid & (off < 14), distance + off * 1e-4, np.inf).argmin()))
        outer, upper_outer, upper_inner, lower_inner, lower_outer = ring
        inner = self.nearest((side * INNER_CORNER[0], INNER_CORNER[1]), lid)
        # The usual order starts at the person's right end of the eye and runs over the upper lid.
        right_to_left = [outer, upper_outer, upper_inner, inner, lower_inner, lower_outer]
        return right_to_left if side < 0 else [inner, upper_inner, upper_outer, outer, lower_outer, lower_inner]

    def mouth(self, corners: list[int]) -> list[int]:
        """Ten of the outer edge of the lips, six of the inner, without the corners."""
        mouth = self.skin & (self.lips > 0.6)
        lower = self.jaw_drop > 0.5 * self.jaw_drop[mouth].max()
        half = self.x[corners[1]]

        def edge(lip: np.ndarray, direction: int, inner: bool) -> list[int]:
            row = []
            for share in (-0.4, 0, 0.4) if inner else (-0.66, -0.33, 0, 0.33, 0.66):
                near = lip & (np.abs(self.x - share * half) < 0.0035)
                front = near & (self.z > self.z[near].max() - (0.004 if inner else 0.012))
                height = direction * self.y * (-1 if inner else 1)
                row.append(int(np.where(front, height, -np.inf).argmax()))
            return row

        return [
            vertex
            for inner in (False, True)
            for vertex in edge(mouth & ~lower, 1, inner) + edge(mouth & lower, -1, inner)[::-1]
        ]
