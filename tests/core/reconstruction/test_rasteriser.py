"""The rasteriser against a renderer that shares nothing with it; batches, chunks and z-buffers give the same."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fantasyid_core.errors import MeshError
from fantasyid_core.reconstruction import rasteriser
from fantasyid_core.reconstruction.rasteriser import perspective_correct, rasterise


def brute_force(vertices: np.ndarray, faces: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel by pixel, triangle by triangle in float64: nearest triangle, and depths of all that cover the pixel."""
    index = np.full((height, width), -1)
    nearest = np.full((height, width), np.inf)
    for row in range(height):
        for column in range(width):
            for i, face in enumerate(faces):
                corners = vertices[face]
                system = np.vstack([corners[:, :2].T, np.ones(3)])
                if abs(np.linalg.det(system)) < 1e-9:
                    continue
                weights = np.linalg.solve(system, [column, row, 1])
                depth = weights @ corners[:, 2]
                if (weights >= 0).all() and depth < nearest[row, column]:
                    index[row, column], nearest[row, column] = i, depth
    return index, nearest


def soup(seed: int, spread: float, triangles: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Random triangles about a picture of 14 × 14."""
    generator = np.random.default_rng(seed)
    middle = generator.uniform(0, 14, (triangles, 1, 3))
    vertices = (middle + generator.normal(0, spread / 3, (triangles, 3, 3))).reshape(-1, 3).astype(np.float32)
    return torch.from_numpy(vertices), torch.arange(3 * triangles).reshape(triangles, 3)


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=15, deadline=None)
@given(seed=seeds, spread=st.sampled_from([4.0, 12.0, 60.0]), chunk=st.sampled_from([16, 1 << 20]))
def test_random_meshes_equal_brute_force(seed: int, spread: float, chunk: int):
    mesh, triangles = soup(seed, spread)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rasteriser, "_CHUNK", {"cpu": chunk})
        index, weights = rasterise(mesh, triangles, 13, 17)
    vertices, faces = mesh.double().numpy(), triangles.numpy()
    expected, depth = brute_force(vertices, faces, 13, 17)
    assert (index.numpy() == expected).mean() > 0.99  # rounding may turn a pixel on an edge

    shown = (index >= 0).numpy() & (index.numpy() == expected)
    corners = vertices[faces[index.numpy()[shown]]]
    row, column = np.nonzero(shown)
    point = np.stack([column, row, depth[shown]], 1)
    tolerance = 1e-3 * np.abs(corners).max(initial=1)
    assert np.allclose((weights.numpy()[shown][..., None] * corners).sum(1), point, atol=tolerance)
    assert (weights.numpy()[index.numpy() < 0] == 0).all()
    assert (weights >= 0).all()


@settings(max_examples=25, deadline=None)
@given(seed=seeds, chunk=st.sampled_from([1, 16, 1 << 20]), masked=st.booleans())
def test_a_batch_equals_its_meshes_one_by_one(seed: int, chunk: int, masked: bool):
    first, faces = soup(seed, 9.0)
    batch = torch.stack([first, first.flip(1), first * 0.5, first + 100])
    keep = torch.rand(4, 12, generator=torch.Generator().manual_seed(seed)) < 0.6 if masked else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rasteriser, "_CHUNK", {"cpu": chunk})
        index, weights = rasterise(batch, faces, 13, 17, keep)
    for i, mesh in enumerate(batch):
        chosen = torch.arange(12) if keep is None else keep[i].nonzero()[:, 0]
        alone, alone_weights = rasterise(mesh, faces[chosen], 13, 17)
        assert torch.equal(index[i], torch.where(alone < 0, -1, chosen[alone.clamp(min=0)] if len(chosen) else alone))
        assert torch.equal(weights[i], alone_weights)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, calls=st.integers(1, 3), ties=st.booleans())
def test_both_z_buffers_agree(seed: int, calls: int, ties: bool):
    generator = torch.Generator().manual_seed(seed)
    buffers = [kind(20, torch.device("cpu")) for kind in (rasteriser.PackedZBuffer, rasteriser.PairZBuffer)]
    for _ in range(calls):
        pixel = torch.randint(0, 20, (50,), generator=generator)
        depth = torch.randn(50, generator=generator) * 3
        index = torch.randint(0, 1000, (50,), generator=generator)
        for buffer in buffers:
            buffer.add(pixel, depth.round() if ties else depth, index)
    assert torch.equal(buffers[0].index, buffers[1].index)


def test_orientation_and_pixel_centres():
    """Integers are pixel centres, x to the right, y down; smaller z is nearer; edges belong to the triangle."""
    vertices = torch.tensor([[1.0, 1, 5], [4, 1, 5], [1, 3, 5], [0, 0, 9], [9, 0, 9], [0, 9, 9]])
    index, weights = rasterise(vertices, torch.tensor([[3, 4, 5], [0, 1, 2]]), 5, 6)
    assert (index == 1).nonzero().tolist() == [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1]]
    assert weights[1, 4].tolist() == pytest.approx([0, 1, 0])
    assert index[0, 5] == 0


def test_no_seams_in_a_closed_mesh(sphere):
    vertices, faces = sphere(40)
    index, _ = rasterise(vertices * 100 + 127.3, faces, 256, 256)
    y, x = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    inside = (x - 127.3).square() + (y - 127.3).square() < 99**2
    assert (index[inside] >= 0).all()


def test_unusable_triangles_are_left_out():
    vertices = torch.tensor(
        [[0.0, 0, 0], [8, 0, 0], [0, 8, 0], [torch.nan, 1, 1], [torch.inf, 1, 1], [-1e30, -1e30, 0]]
    )
    faces = torch.tensor([[0, 1, 3], [0, 1, 4], [0, 0, 1], [0, 1, 1], [5, 5, 5], [0, 1, 2]])
    index, weights = rasterise(vertices, faces, 4, 4)
    assert index[0, 0] == 5
    assert set(index.unique().tolist()) <= {-1, 5}
    assert weights.isfinite().all()
    assert (rasterise(vertices, faces[:0], 4, 4)[0] == -1).all()


@settings(max_examples=50, deadline=None)
@given(
    numbers=st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=18, max_size=18),
    far=st.sampled_from([1.0, 1e6, 1e30]),
)
def test_any_numbers_give_a_picture(numbers: list[float], far: float):
    vertices = torch.tensor(numbers).reshape(6, 3) * far
    index, weights = rasterise(vertices, torch.tensor([[0, 1, 2], [3, 4, 5], [0, 2, 4]]), 5, 7)
    assert index.amin() >= -1
    assert index.amax() < 3
    assert weights.isfinite().all()


def test_perspective_weights_hit_the_surface():
    """The middle of an edge that recedes from 1 to 3 appears three quarters along it, nearer to the far end."""
    flat = torch.tensor([[0.25, 0.75, 0], [0.5, 0.5, 0]])
    weights = perspective_correct(flat, torch.tensor([[1.0, 3.0, 1.0], [2.0, 2.0, 9.0]]))
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0]]))


@pytest.mark.parametrize(
    ("vertices", "faces", "message"),
    [
        (torch.rand(4, 2), torch.tensor([[0, 1, 2]]), r"\(4, 2\)"),
        (torch.rand(2, 2, 4, 3), torch.tensor([[0, 1, 2]]), r"\(2, 2, 4, 3\)"),
        (torch.rand(2, 0, 3), torch.tensor([[0, 1, 2]]), "at least one"),
        (torch.rand(2, 4, 3), torch.tensor([[0, 1, 4]]), "vertices 0 to 4, but there are 4"),
        (torch.rand(4, 3), torch.rand(1, 3), "integers"),
    ],
)
def test_hostile_meshes_say_why(vertices: torch.Tensor, faces: torch.Tensor, message: str):
    with pytest.raises(MeshError, match=message):
        rasterise(vertices, faces, 8, 8)
