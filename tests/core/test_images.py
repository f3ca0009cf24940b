"""Photos in: every layout, depth and file that artists bring becomes (H, W, 3) float 0…1, or a clear error."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fantasyid_core.errors import ImageError
from fantasyid_core.images import MAX_SIDE, as_photo, load_photo, resize

RAMP = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_layouts(batch: bool, channels: int):
    image = torch.rand(20, 30, channels)
    photo = as_photo(image[None] if batch else image)
    assert torch.equal(photo, image[..., :3].expand(20, 30, 3))


@pytest.mark.parametrize(
    ("dtype", "white"), [(torch.uint8, 255), (torch.uint16, 65_535), (torch.float16, 1), (torch.float64, 1)]
)
def test_depths(dtype: torch.dtype, white: int):
    photo = as_photo(torch.full((16, 16, 3), white, dtype=dtype))
    assert photo.dtype == torch.float32
    assert (photo == 1).all()


def test_values_slightly_outside_are_clamped():
    photo = as_photo(torch.linspace(-0.1, 1.2, 16 * 16 * 3).reshape(16, 16, 3))
    assert (photo.min(), photo.max()) == (0, 1)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "NoneType"),
        (torch.rand(2, 20, 20, 3), "one picture"),
        (torch.rand(20, 20), "one picture"),
        (torch.rand(20, 20, 2), "channels"),
        (torch.rand(0, 20, 3), "at least 16 px"),
        (torch.rand(1, 1, 1, 3), "1 × 1 px"),
        (torch.full((20, 20, 3), torch.nan), "NaN"),
        (torch.full((20, 20, 3), torch.inf), "infinite"),
        (torch.full((20, 20, 3), 255.0), "Divide it by 255"),
        (torch.zeros(20, 20, 3, dtype=torch.int64), "int64"),
        (torch.zeros(20, 20, 3, dtype=torch.bool), "bool"),
        (torch.zeros(16, 40_000, 1, dtype=torch.uint8), "too narrow"),
    ],
)
def test_unusable_images_say_why(image: torch.Tensor | None, message: str):
    with pytest.raises(ImageError, match=message) as error:
        as_photo(image, "reference photo")
    assert "reference photo" in str(error.value)


def test_absurd_sizes_are_thinned_out():
    photo = as_photo(torch.zeros(1, dtype=torch.uint8).expand(64, 40_000, 3))
    assert max(photo.shape) <= MAX_SIDE
    assert photo.shape[1] / photo.shape[0] == pytest.approx(40_000 / 64, rel=0.05)


@settings(max_examples=200, deadline=None)
@given(
    shape=st.lists(st.sampled_from([0, 1, 2, 3, 4, 15, 16, 40]), min_size=0, max_size=5),
    dtype=st.sampled_from([torch.uint8, torch.uint16, torch.int32, torch.bool, torch.float16, torch.float32]),
    value=st.sampled_from([0.0, 0.5, 1.0, -3.0, 60.0, 1e4, float("nan"), float("inf")]),
)
def test_any_tensor_gives_a_photo_or_an_image_error(shape: list[int], dtype: torch.dtype, value: float):
    number = value if dtype.is_floating_point else int(np.nan_to_num(abs(value), posinf=0)) % 200
    try:
        photo = as_photo(torch.full(shape, number, dtype=dtype))
    except ImageError:
        return
    assert photo.ndim == 3
    assert photo.shape[2] == 3
    assert photo.dtype == torch.float32
    assert 0 <= photo.min() <= photo.max() <= 1


def test_file_is_read_as_stored(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "photo.png")
    assert torch.equal(load_photo(tmp_path / "photo.png"), torch.from_numpy(RAMP) / 255)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90° clockwise to see it upright
    Image.fromarray(RAMP).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(load_photo(tmp_path / "turned.png"), torch.from_numpy(np.rot90(RAMP, -1).copy()) / 255)


def test_16_bit_grey_keeps_its_depth(tmp_path):
    grey = np.linspace(0, 65_535, 20 * 30).astype(np.uint16).reshape(20, 30)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    photo = load_photo(tmp_path / "deep.png")
    assert torch.equal(photo[..., 0], torch.from_numpy(grey).float() / 65_535)
    assert torch.equal(photo[..., 0], photo[..., 2])


@pytest.mark.parametrize(
    ("mode", "suffix", "tolerance"),
    [("L", "png", 1), ("P", "png", 120), ("RGBA", "png", 0), ("LA", "png", 1), ("CMYK", "tiff", 2), ("1", "png", 255)],
)
def test_modes_become_rgb(tmp_path, mode: str, suffix: str, tolerance: int):
    path = tmp_path / f"photo.{suffix}"
    picture = Image.fromarray(RAMP).convert("L").convert("RGB") if mode in ("L", "LA") else Image.fromarray(RAMP)
    picture.convert(mode).save(path)
    photo = load_photo(path)
    assert photo.shape == (20, 30, 3)
    assert (photo * 255 - torch.from_numpy(np.array(picture))).abs().max() <= tolerance


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "missing"])
def test_damaged_files_say_which(tmp_path, damage: str):
    path = tmp_path / "holiday.jpg"
    Image.effect_noise((200, 200), 80).save(path)
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "text": b"not a picture"}.get(damage, b""))
    if damage == "missing":
        path.unlink()
    with pytest.raises(ImageError, match=r"holiday\.jpg"):
        load_photo(path)


def test_reduction_keeps_the_mean_and_does_not_alias():
    stripes = torch.zeros(64, 64, 3)
    stripes[:, ::2] = 1
    reduced = resize(stripes, 16, 16)[:, 1:-1]
    assert (reduced - 0.5).abs().max() < 0.02


def test_a_small_file_that_would_fill_the_memory_is_refused(tmp_path):
    Image.new("1", (12_000, 12_000)).save(tmp_path / "bomb.png")  # 18 kB
    with pytest.raises(ImageError, match=r"'bomb\.png' says that it is 12000 × 12000 px.*damaged or not a photo"):
        load_photo(tmp_path / "bomb.png")
    Image.new("RGB", (1_500, 1_000)).save(tmp_path / "plain.png")  # 4 kB, but small
    assert load_photo(tmp_path / "plain.png").shape == (1_000, 1_500, 3)
