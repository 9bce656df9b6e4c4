"""Images for pictures: turned as their camera says, cropped in the middle, and grey of any depth."""

import numpy as np
import pytest
from PIL import Image

from runners.pictures.photos import open_image


def test_an_image_is_turned_as_its_camera_says_and_cropped_in_the_middle(tmp_path):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 20:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    shown = open_image(str(tmp_path / "turned.png")).at(32, 32)
    assert shown.pixels.shape == (32, 32, 3)
    assert shown.pixels[:12].max() < 0.1 < 0.9 < shown.pixels[20:].min()
    assert shown.input.shape == (1, 3, 32, 32)
    normal = (shown.pixels[0, 0] - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(shown.input[0, :, 0, 0].numpy(), normal, rtol=1e-5)


RAMP = np.linspace(0, 1, 32 * 32).reshape(32, 32)
GREYS = {
    "16 bits": (RAMP * 65535).astype(np.uint16),
    "12 bits in 16": (RAMP * 4095).astype(np.uint16),
    "16 bits in 32": (RAMP * 65535).astype(np.int32),
    "32 bits": (RAMP * 2e9).astype(np.int32),
    "8 bits in 32": (RAMP * 255).astype(np.int32),
    "from 0 to 1": RAMP.astype(np.float32),
    "from 0 to 255": (RAMP * 255).astype(np.float32),
    "around 0": (RAMP * 8 - 4).astype(np.float32),
}


@pytest.mark.parametrize("suffix", [".tif", ".png"])
@pytest.mark.parametrize("name", GREYS)
def test_a_grey_ramp_stays_a_ramp(tmp_path, name, suffix):
    if suffix == ".png" and GREYS[name].dtype != np.uint16:
        pytest.skip("PNG has 16 bits at most")
    Image.fromarray(GREYS[name]).save(tmp_path / f"grey{suffix}")
    pixels = open_image(str(tmp_path / f"grey{suffix}")).at(32, 32).pixels
    np.testing.assert_allclose(pixels, np.repeat(RAMP[..., None], 3, axis=2), atol=0.004)


def test_a_grey_without_a_ramp_and_one_without_numbers(tmp_path):
    Image.fromarray(np.full((32, 32), -7.0, np.float32)).save(tmp_path / "flat.tif")
    assert open_image(str(tmp_path / "flat.tif")).at(32, 32).pixels.max() == 0
    Image.fromarray(np.full((32, 32), np.nan, np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(ValueError, match=r"nan\.tif cannot be read"):
        open_image(str(tmp_path / "nan.tif"))
