"""Images of strangers are read right, or refused with a reason; never more."""

import io
import struct
import zlib

import numpy as np
import pytest
from image_files import encoded, picture
from PIL import Image

from runners.data.decode import MAX_PIXELS, decode

RED, GREEN = (250, 10, 20), (10, 200, 30)


def pixel(content: bytes, x: int = 0, y: int = 0) -> tuple[int, ...]:
    image = decode(io.BytesIO(content))
    assert image.mode == "RGB"
    return tuple(int(value) for value in np.asarray(image)[y, x])


def halves() -> Image.Image:
    """16 x 8 px, red on the left and green on the right."""
    image = Image.new("RGB", (16, 8), RED)
    image.paste(GREEN, (8, 0, 16, 8))
    return image


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def test_plain_colours_keep_their_values():
    assert pixel(encoded(halves())) == RED
    assert pixel(encoded(halves()), 15, 7) == GREEN
    assert pixel(encoded(halves().convert("L"))) == (83, 83, 83)


def test_cmyk_becomes_rgb():
    # ink 0, 0, 100, 50 of 255 on white: (255 - 0) (255 - 50) / 255 and so on
    assert pixel(encoded(Image.new("CMYK", (8, 8), (0, 0, 100, 50)), "TIFF")) == (205, 205, 125)
    red, green, blue = pixel(encoded(Image.new("CMYK", (8, 8), (0, 0, 100, 50)), "JPEG"))
    assert abs(red - 205) < 4 and abs(green - 205) < 4 and abs(blue - 124) < 4


def test_16_bit_greys_keep_their_ramp():
    ramp = np.array([[0, 16384, 32768, 65535]], dtype=np.uint16)
    assert [pixel(encoded(Image.fromarray(ramp)), x)[0] for x in range(4)] == [0, 64, 128, 255]


def test_a_palette_with_transparency_keeps_its_colours(recwarn):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *RED, *GREEN])
    assert pixel(encoded(image, transparency=b"\x00\x40\xff")) == RED
    assert not recwarn.list
    assert pixel(encoded(Image.new("RGBA", (4, 4), (*GREEN, 0)))) == GREEN


# of each orientation, where the top left corner comes from
@pytest.mark.parametrize(
    ("orientation", "size", "left", "right"),
    [(1, (16, 8), RED, GREEN), (2, (16, 8), GREEN, RED), (3, (16, 8), GREEN, RED), (6, (8, 16), RED, RED)],
)
def test_a_camera_that_was_turned_is_believed(orientation, size, left, right):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(halves(), exif=exif)
    assert decode(io.BytesIO(content)).size == size
    assert (pixel(content), pixel(content, size[0] - 1)) == (left, right)
    if orientation == 6:
        assert pixel(content, 0, 15) == GREEN


def test_damaged_notes_beside_the_pixels_cost_no_image():
    content = encoded(halves(), "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff", quality=100, subsampling=0)
    assert abs(pixel(content)[0] - RED[0]) < 6


def test_one_pixel_and_one_frame_of_many():
    assert pixel(encoded(Image.new("RGB", (1, 1), GREEN))) == GREEN
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    assert pixel(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == RED


def cut(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


BROKEN = {
    "empty": (b"", "no image that Pillow can read"),
    "text": (b"not an image at all\n" * 20, "no image that Pillow can read"),
    "cut JPEG": (cut(encoded(picture(0, (200, 150)), "JPEG")), "truncated"),
    "cut PNG": (cut(encoded(picture(0, (200, 150)))), "truncated"),
    "a flipped byte": (encoded(picture(0)).replace(b"IDAT", b"IDAX", 1), "no image that Pillow can read"),
    "bomb": (png_header(60_000, 60_000), "exceeds limit"),
    "just too large": (png_header(MAX_PIXELS // 10_000 + 1, 10_000), "the limit is 134217728"),
    "a thread": (png_header(30_000, 2), "one side more than 500 times the other"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n", "no image"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_refused_with_a_reason(name):
    content, reason = BROKEN[name]
    with pytest.raises(ValueError, match=reason) as caught:
        decode(io.BytesIO(content))
    assert str(caught.value) and "\n" not in str(caught.value)


def test_a_bomb_is_refused_by_its_header(monkeypatch):
    def load(image):
        raise AssertionError("unpacked")

    monkeypatch.setattr(Image.Image, "load", load)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ValueError, match="60000 x 60000 pixels, the limit is"):
        decode(io.BytesIO(png_header(60_000, 60_000)))


def test_any_damage_is_a_value_error():
    kinds = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP")
    rng = np.random.default_rng(0)
    for kind in kinds:
        content = np.frombuffer(encoded(picture(1), kind), dtype=np.uint8)
        for _ in range(60):
            damaged = content.copy()
            damaged[rng.integers(0, len(content), 4)] = rng.integers(0, 256, 4)
            try:
                image = decode(io.BytesIO(damaged.tobytes()))
            except ValueError:
                continue
            assert image.mode == "RGB"
