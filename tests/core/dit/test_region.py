"""Where in the picture and when in the video identities act: weights of visual tokens, and what injections then add."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fantasyid_core.dit.injection import Injection, InjectionRun, LayerAttention
from fantasyid_core.dit.region import ADD, LAST_WINS, OVERLAPS, SHARE, Region, TokenGrid, token_weights
from fantasyid_core.errors import IdentityError, SamplingError

FRAMES, ROWS, COLUMNS = 3, 4, 6  # 9 frames of 64 × 96 pixels
GRID = TokenGrid(FRAMES, ROWS, COLUMNS)
LEFT = torch.zeros(1, 64, 96)
LEFT[..., :48] = 1


@pytest.fixture
def add():
    """What identities with these regions add to the visual tokens, (2, T, rows, columns, dim)."""
    drawn = torch.Generator().manual_seed(0)
    layer = LayerAttention(24, 20, 32, 8).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=drawn))
    hidden_states = torch.randn(2, FRAMES * ROWS * COLUMNS, 24, generator=drawn)
    tokens = torch.randn(len(OVERLAPS), 5, 20, generator=drawn)

    def added(*regions: Region, grid: TokenGrid = GRID, strength: float = 1.0) -> torch.Tensor:
        run = InjectionRun([Injection(x, strength, region=r) for x, r in zip(tokens, regions, strict=False)])
        before = hidden_states.unflatten(1, (FRAMES, ROWS, COLUMNS))[:, list(grid.window) or slice(None)].flatten(1, 3)
        return (run.add_to(before, 0, layer, 0.5, grid=grid) - before).unflatten(1, (-1, ROWS, COLUMNS))

    return added


def test_a_white_mask_is_no_mask_and_a_black_one_is_strength_0(add):
    assert torch.equal(add(Region(torch.ones(1, 64, 96))), add(Region()))
    assert not add(Region(torch.zeros(1, 64, 96))).any()


def test_outside_of_half_a_mask_nothing_is_added_and_inside_all(add):
    half, whole = add(Region(LEFT)), add(Region())
    assert not half[..., 3:, :].any()
    assert torch.equal(half[..., :3, :], whole[..., :3, :])


def test_a_box_counts_by_how_much_of_a_token_it_covers():
    weights = Region(box=(0.25, 0.5, 0.5, 0.5)).weights(1, ROWS, COLUMNS)[0]
    assert not weights[:2].any()
    torch.testing.assert_close(weights[2], torch.tensor([0.0, 0.5, 1.0, 1.0, 0.5, 0.0]))


def test_a_box_of_the_whole_picture_is_no_box_and_with_a_mask_both_limit(add):
    assert torch.equal(add(Region(box=(0.0, 0.0, 1.0, 1.0))), add(Region()))
    both = Region(LEFT, box=(0.0, 0.5, 1.0, 0.5)).weights(1, ROWS, COLUMNS)[0]
    assert torch.equal(both, torch.zeros(ROWS, COLUMNS).index_fill(0, torch.tensor([2, 3]), 1) * (torch.arange(6) < 3))


def test_soft_edges_are_averaged_over_the_area_of_a_token():
    ramp = torch.linspace(0, 1, 96).expand(1, 64, 96)
    weights = Region(ramp).weights(1, ROWS, COLUMNS)
    torch.testing.assert_close(weights[0, 0], ramp[0, 0].unflatten(0, (COLUMNS, -1)).mean(1))


def test_a_mask_per_frame_is_averaged_as_the_vae_groups_frames():
    mask = torch.arange(9).div(8)[:, None, None].expand(-1, 64, 96)
    weights = Region(mask).weights(FRAMES, ROWS, COLUMNS)[:, 0, 0]
    torch.testing.assert_close(weights, torch.tensor([0, (1 + 2 + 3 + 4) / 32, (5 + 6 + 7 + 8) / 32]))


def test_seconds_choose_latent_frames_and_fades_of_neighbours_sum_to_1():
    first, second = Region(to_second=0.625, fade=0.5), Region(from_second=0.625, fade=0.5)
    a, b = (region.weights(FRAMES, 1, 1).flatten() for region in (first, second))
    torch.testing.assert_close(a + b, torch.ones(FRAMES))
    assert a[0] == 1
    assert 0 < a[1] < 1
    assert Region(to_second=0.6).weights(FRAMES, 1, 1).flatten().tolist() == [1.0, 1.0, 0.0]


@given(
    st.lists(st.tuples(st.floats(0, 1, width=16), st.sampled_from(OVERLAPS)), min_size=1, max_size=5),
)
def test_overlaps_add_share_or_displace(chain):
    regions = [Region(torch.full((1, 2, 2), value), overlap=overlap) for value, overlap in chain]
    found = [1.0 if w is None else float(w[0]) for w in token_weights(regions, TokenGrid(1, 1, 1))]
    wanted: list[float] = []
    groups: list[list[int]] = []
    for i, (value, overlap) in enumerate(chain):
        if overlap == LAST_WINS:
            wanted = [before * (1 - value) for before in wanted]
        wanted.append(value)
        if overlap == SHARE and groups:
            groups[-1].append(i)
        else:
            groups.append([i])
    for group in groups:
        total = max(1.0, sum(wanted[i] for i in group))
        for i in group:
            wanted[i] /= total
    assert found == pytest.approx(wanted, abs=1e-5)
    assert all(0 <= w <= 1 for w in found)


def test_two_halves_are_two_people(add):
    right = Region(1 - LEFT, overlap=SHARE)
    both, alone = add(Region(LEFT), right), add(Region(), Region())
    torch.testing.assert_close(both[..., :3, :], add(Region())[..., :3, :])
    torch.testing.assert_close(both[..., 3:, :], (alone - add(Region()))[..., 3:, :])


def test_a_window_of_a_long_video_has_the_weights_of_its_own_frames(add):
    region = Region(from_second=0.6)  # from the sixth of nine frames on
    windowed = add(region, grid=TokenGrid(FRAMES, ROWS, COLUMNS, (0, 2)))
    assert torch.equal(windowed, add(region)[:, [0, 2]])
    assert not windowed[:, 0].any()
    assert windowed[:, 1].any()


def test_a_mask_of_another_length_names_both(add):
    with pytest.raises(SamplingError, match=r"mask has 5 frames, but the video has 9\. Connect one mask"):
        add(Region(torch.ones(5, 8, 8)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": torch.ones(64, 96)}, r"mask has shape \(64, 96\)"),
        ({"mask": torch.ones(0, 64, 96)}, r"mask has shape \(0, 64, 96\)"),
        ({"mask": LEFT * math.nan}, "values from nan to nan"),
        ({"mask": LEFT * 255}, "values from 0 to 255"),
        ({"from_second": 2.0, "to_second": 1.0}, "from second 2 to second 1"),
        ({"from_second": -1.0}, "from second -1"),
        ({"fade": math.nan}, "fade of nan s"),
        ({"box": (0.0, 0.0, 0.0, 1.0)}, "box is empty: width 0, height 1"),
        ({"box": (0.5, 0.0, 0.6, 1.0)}, "box leaves the picture: from 0.5 to 1.1 across"),
        ({"box": (0.0, math.nan, 1.0, 1.0)}, "box leaves the picture"),
        ({"overlap": "mix"}, f"no overlap 'mix'; choose one of: {ADD}"),
    ],
)
def test_what_is_no_region_is_refused(options, message):
    with pytest.raises(IdentityError, match=message):
        Region(**options)
