"""New views from one photo: its own pixels on the face's mesh, turned to other poses.

What the photo does not show stays empty. A pixel of a new view is covered only if the photo shows that place: inside of
the picture, not hidden behind another part of the mesh, not seen too flatly, and not so near an outline that the pixel
may belong to what lies behind it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..detection.alignment import BORDER_GREY, CROP_SIZE, FFHQ_TEMPLATE, similarity, warp
from ..detection.dense_pose import CONFIDENT
from ..detection.face_contours import AROUND_EYES_AND_MOUTH
from ..detection.faces import DetectedFace
from ..detection.head_pose import HeadPose, rotation
from ..errors import MeshError
from ..reconstruction.face_mesh import FaceMesh
from ..reconstruction.rasteriser import check, rasterise
from ..reconstruction.render import normals
from .collection import FaceViews

# All of these in px of the 512 crop, in which a face is about 250 px high.
_MARGIN = 128  # of the texture around the crop
_TOLERANCE = 4.0  # in depth
_OUTLINE, _JUMP = 3, 15.0  # a step in depth this high makes pixels this near to it unreliable
_MIN_FACING = 0.25  # cosine between a surface and the photo's viewing direction
_DEPTH_WINDOW = 4  # a landmark, for its depth
# Where a patch over an eye finds the skin's depth, and which share of its edge is nearer than its middle: eyes bulge.
_SKIN_WINDOW, _NEARER = 6, 0.2
_CRACK = 2
_SAME_POSE = 5.0  # degrees
_COARSE = 4  # to find out what is connected
_BATCH = 8  # views


def grid(yaw: float, pitch: float, columns: int, rows: int) -> list[tuple[float, float]]:
    """Poses evenly spread over ± yaw and ± pitch degrees, row by row from the top; one column or row is the middle."""

    def spread(reach: float, count: int) -> list[float]:
        return torch.linspace(-reach, reach, count).tolist() if count > 1 else [0.0]

    return [(y, p) for p in reversed(spread(pitch, rows)) for y in spread(yaw, columns)]


@torch.no_grad()
def new_views(
    face: DetectedFace,
    mesh: FaceMesh,
    poses: Sequence[tuple[float, float]],
    min_coverage: float = 0.5,
) -> FaceViews:
    """The photo's face seen from other sides, behind the photo's own crop, on the photo's device.

    Args:
        mesh: of that face, with `in_photo`.
        poses: yaw and pitch in degrees, of the new views (not relative to the photo's). Those within 5° of the photo's
            own pose are left out.
        min_coverage: views of which the photo shows a smaller share of the face are left out, 0…1.

    Returns:
        The reference, then the new views, those nearest to the photo's pose first; `coverage` says where they show the
        person, crops are grey elsewhere. Scores are the photo's quality times the share that is seen.

    Raises:
        MeshError: the mesh has no triangles or does not know where the photo shows it.
    """
    surface = _Surface(face, mesh)
    targets = _other_poses(poses, face.pose)
    crops, coverage, shares = [face.crop[None]], [face.crop.new_ones(1, CROP_SIZE, CROP_SIZE)], []
    for i in range(0, len(targets), _BATCH):
        crop, view_coverage, share = surface.render(targets[i : i + _BATCH])
        usable = share >= min_coverage
        crops.append(crop[usable])
        coverage.append(view_coverage[usable])
        shares += share.tolist()
    rendered = [(pose, share) for pose, share in zip(targets, shares, strict=True) if share >= min_coverage]
    angles = [(face.pose.yaw, face.pose.pitch, face.pose.roll), *((y, p, 0.0) for (y, p), _ in rendered)]
    return FaceViews(
        torch.cat(crops),
        face.crop.new_tensor([face.quality, *(face.quality * share for _, share in rendered)]),
        face.crop.new_tensor(angles),
        ("photo", *["rendered"] * len(rendered)),
        torch.cat(coverage),
        _report(
            len(poses) - len(targets), len(targets) - len(rendered), [share for _, share in rendered], min_coverage
        ),
    )


def _other_poses(poses: Sequence[tuple[float, float]], photo: HeadPose) -> list[tuple[float, float]]:
    """Those that are not the photo's own pose, the nearest to it first."""
    offsets = [(max(abs(yaw - photo.yaw), abs(pitch - photo.pitch)), yaw, pitch) for yaw, pitch in poses]
    return [(yaw, pitch) for offset, yaw, pitch in sorted(offsets) if offset >= _SAME_POSE]


def append_rendered(views: FaceViews, rendered: FaceViews) -> FaceViews:
    """`views` with those of `rendered` behind them, without its reference, on the device of `views`."""
    count, more = len(views.crops), rendered.crops[1:].to(views.crops)
    unknown = views.crops.new_zeros(count, 3) if views.poses is None else views.poses
    whole = views.crops.new_ones(views.crops.shape[:3]) if views.coverage is None else views.coverage
    assert rendered.poses is not None, "new_views knows them"
    assert rendered.coverage is not None
    return FaceViews(
        torch.cat([views.crops, more]),
        torch.cat([views.scores, rendered.scores[1:].to(views.scores)]),
        torch.cat([unknown, rendered.poses[1:].to(unknown)]),
        (*(views.origins or ("",) * count), *rendered.origins[1:]),
        torch.cat([whole, rendered.coverage[1:].to(whole)]),
        "\n".join(filter(None, (views.report, rendered.report))),
    )


class _Surface:
    """A mesh with its photo on it. `points` (V, 3): x right, y down, z away, in px of the texture."""

    def __init__(self, face: DetectedFace, mesh: FaceMesh):
        if mesh.in_photo is None or mesh.faces is None:
            raise MeshError(
                "This mesh does not know where the photo shows it, so the photo cannot be laid on it. Use the mesh "
                "that FantasyID Reconstruct 3D made from this face; a mesh from a file does not do."
            )
        device = face.image.device
        in_photo, self.faces = mesh.in_photo.to(device, torch.float32), mesh.faces.to(device)
        check(in_photo, self.faces)
        if not in_photo.isfinite().all():
            raise MeshError("The mesh has NaN or infinite vertices; run the node that made it again.")
        to_texture = face.to_crop.to(device, torch.float32).clone()
        to_texture[:, 2] += _MARGIN
        self.size = CROP_SIZE + 2 * _MARGIN
        scale = to_texture[:, 0].norm()
        xy = in_photo[:, :2] @ to_texture[:, :2].mT + to_texture[:, 2]
        self.points = torch.cat([xy, in_photo[:, 2:] * scale], 1)
        self.texture = warp(face.image, to_texture, self.size)
        self.depth = self._depth()
        self.patches = len(self.faces)  # the first face of them
        if face.dense_landmarks is not None and face.dense_confidence >= CONFIDENT:
            dense = face.dense_landmarks[:, :2].to(self.points)
            self._close_openings(dense @ to_texture[:, :2].mT + to_texture[:, 2])
        self.normals = normals(self.points, self.faces)
        self.reliable = _inside(self.depth) & _in_photo(to_texture, self.size, *face.image.shape[:2])
        landmarks = face.landmarks.to(device, torch.float32) @ to_texture[:, :2].mT + to_texture[:, 2]
        self.landmarks = self._on_surface(landmarks)
        roll = face.pose.roll + float(torch.atan2(to_texture[1, 0], to_texture[0, 0]).rad2deg())
        angles = [xy.new_tensor(angle) for angle in (face.pose.yaw, face.pose.pitch, roll)]
        self.to_frontal = rotation(*angles).mT

    def _depth(self) -> Tensor:
        """(S, S) of what the texture shows, infinite beside the mesh."""
        index, weights = rasterise(self.points, self.faces, self.size, self.size)
        return torch.where(index >= 0, (weights * self.points[self.faces[index.clamp(min=0)], 2]).sum(-1), torch.inf)

    def _close_openings(self, dense: Tensor) -> None:
        """Lay a patch over each eye and the mouth, as high as the skin around: meshes end there, or have a socket in
        place of an eye. `dense`: (478, 2) px of the texture.
        """
        window = 2 * _SKIN_WINDOW + 1
        skin = -F.max_pool2d(-self.depth[None], window, 1, _SKIN_WINDOW)[0]
        for around in AROUND_EYES_AND_MOUTH:
            ring = dense[list(around)]
            x, y = ring.round().long().clamp(0, self.size - 1).unbind(1)
            patch = torch.cat([ring, skin[y, x, None]], 1)
            if not patch.isfinite().all():
                continue
            first, count = len(self.points), len(patch)
            step = torch.arange(count, device=dense.device)
            fan = torch.stack([step, (step + 1) % count, torch.full_like(step, count)], 1)
            middle = torch.cat([ring.mean(0), patch[:, 2].quantile(_NEARER)[None]])
            self.points = torch.cat([self.points, patch, middle[None]])
            self.faces = torch.cat([self.faces, first + fan.to(self.faces)])
        self.depth = self._depth()

    def _on_surface(self, points: Tensor) -> Tensor:
        """Points (N, 3) of the surface where the texture shows places (N, 2), at the median depth about them: a mouth's
        corner lies in a fold. Beside the mesh, at the depth of the nearest vertex.
        """
        step = torch.arange(-_DEPTH_WINDOW, _DEPTH_WINDOW + 1, device=points.device)
        around = points.round().long()[:, None] + torch.cartesian_prod(step, step)
        x, y = around.clamp(0, self.size - 1).unbind(2)
        depth = self.depth[y, x]
        depth = torch.where(depth.isfinite(), depth, torch.nan).nanmedian(1)[0]
        nearest = self.points[torch.cdist(points, self.points[:, :2]).argmin(1), 2]
        return torch.cat([points, torch.where(depth.isfinite(), depth, nearest)[:, None]], 1)

    def render(self, poses: Sequence[tuple[float, float]]) -> tuple[Tensor, Tensor, Tensor]:
        """B poses of yaw and pitch → crops (B, 512, 512, 3), coverage (B, 512, 512) 0 or 1, and the share (B,) of the
        face's pixels that is covered.
        """
        flip = self.points.new_tensor([1, -1, -1])  # between y down, z away and y up, z towards the viewer
        yaw, pitch = self.points.new_tensor(list(poses)).T
        turn = rotation(yaw, pitch, torch.zeros_like(yaw)) @ self.to_frontal
        turn = flip[:, None] * turn * flip
        points, landmarks = self.points @ turn.mT, self.landmarks @ turn.mT
        template = points.new_tensor(FFHQ_TEMPLATE)
        to_crop = torch.stack([similarity(five[:, :2], template) for five in landmarks])
        scale = to_crop[:, :, 0].norm(dim=1)[:, None, None]
        xy = points[..., :2] @ to_crop[..., :2].mT + to_crop[:, None, :, 2]
        index, weights = rasterise(torch.cat([xy, points[..., 2:] * scale], 2), self.faces, CROP_SIZE, CROP_SIZE)

        on_mesh = index >= 0
        corners, weights = self.faces[index[on_mesh]], weights[on_mesh][..., None]
        position = (weights * self.points[corners]).sum(1)
        facing = F.normalize((weights * self.normals[corners]).sum(1), dim=1)[:, 2].abs()
        colour, reliable, depth = self._sample_texture(position[:, :2])
        visible = reliable & (position[:, 2] <= depth + _TOLERANCE) & (facing >= _MIN_FACING)
        coverage = torch.zeros_like(on_mesh)
        coverage[on_mesh] = visible
        coverage = _connected(_without_cracks(coverage, index >= self.patches) & on_mesh)
        crops = colour.new_tensor(BORDER_GREY).expand(*index.shape, 3).clone()
        crops[coverage] = colour[coverage[on_mesh]]
        return crops, coverage.float(), _share(coverage, on_mesh)

    def _sample_texture(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the texture at places (P, 2): colour (P, 3), whether it is reliable, and the depth of what it shows."""
        texture_grid = (points * (2 / (self.size - 1)) - 1)[None, None]
        colour = F.grid_sample(self.texture.movedim(-1, 0)[None], texture_grid, align_corners=True)[0, :, 0].T
        x, y = points.round().long().unbind(1)
        inside = ((points >= 0) & (points <= self.size - 1)).all(1)
        x, y = x.clamp(0, self.size - 1), y.clamp(0, self.size - 1)
        return colour, self.reliable[y, x] & inside, self.depth[y, x]


def _inside(depth: Tensor) -> Tensor:
    """(S, S) depths, infinite beside the mesh → where no outline is near: neither the mesh's nor one within it."""
    window = 2 * _OUTLINE + 1
    farthest = F.max_pool2d(depth[None], window, 1, _OUTLINE)[0]
    nearest = -F.max_pool2d(-depth[None], window, 1, _OUTLINE)[0]
    return farthest - nearest < _JUMP  # infinity minus anything is not


def _in_photo(to_texture: Tensor, size: int, height: int, width: int) -> Tensor:
    """(S, S) bool, the pixels of the texture that lie in the photo."""
    step = torch.arange(size, device=to_texture.device, dtype=torch.float32)
    y, x = torch.meshgrid(step, step, indexing="ij")
    position = (torch.stack([x, y], -1) - to_texture[:, 2]) @ torch.linalg.inv(to_texture[:, :2]).mT
    return ((position >= 0) & (position <= position.new_tensor([width - 1, height - 1]))).all(-1)


def _without_cracks(coverage: Tensor, patches: Tensor) -> Tensor:
    """(B, S, S) bool → without lines up to 4 px wide that are not covered where patches meet the mesh."""

    def widest(values: Tensor, reach: int) -> Tensor:
        return F.max_pool2d(values.float(), 2 * reach + 1, 1, reach)

    closed = -widest(-widest(coverage, _CRACK), _CRACK) > 0
    return coverage | closed & (widest(patches, 4 * _CRACK) > 0)


def _connected(coverage: Tensor) -> Tensor:
    """(B, S, S) bool → what hangs together with the middle of the face. Ears and shoulders that do not are the places
    where a mesh fits worst, and show what lies beside them.
    """
    coarse = F.avg_pool2d(coverage.float(), _COARSE) >= 0.5
    middle = torch.zeros_like(coarse)
    (left, top), (right, bottom) = (48, 56), (80, 96)
    middle[:, top:bottom, left:right] = coarse[:, top:bottom, left:right]
    reached = middle.float()
    for _ in range(len(coarse[0]) // 2):
        reached = F.max_pool2d(reached, 3, 1, 1) * coarse
    reached = F.max_pool2d(reached, 3, 1, 1)  # as far as the cells that are covered in part
    return coverage & (F.interpolate(reached[:, None], scale_factor=_COARSE)[:, 0] > 0)


def _share(coverage: Tensor, on_mesh: Tensor) -> Tensor:
    """Share (B,) of what the mesh shows that is covered, in the face's part of the crop."""
    (left, top), (right, bottom) = (128, 176), (384, 448)
    covered, whole = (part[:, top:bottom, left:right].float().sum((1, 2)) for part in (coverage, on_mesh))
    return covered / whole.clamp(min=1)


def _report(same_pose: int, uncovered: int, shares: Sequence[float], min_coverage: float) -> str:
    lines = [f"{len(shares)} new views."]
    if shares:
        lines[0] += f" The photo shows {min(shares):.0%} to {max(shares):.0%} of the face in them; the rest is grey."
    if same_pose:
        lines.append(f"{same_pose} of the grid's poses are the photo's own (within {_SAME_POSE:.0f}°).")
    if uncovered:
        lines.append(f"{uncovered} were left out: the photo shows less than {min_coverage:.0%} of the face there.")
    return "\n".join(lines)
