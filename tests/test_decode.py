"""data.decode: any image becomes RGB or a reason, and nothing hostile gets further."""

import contextlib
import hashlib
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipguard.data import Failed, ImageSource
from clipguard.data.decode import (
    Decoder,
    Unreadable,
    UnreadableImage,
    check_readable,
    common_size,
    decode,
    prepared,
    read_images,
    read_rows,
    sampled_sizes,
)
from clipguard.data.decode import reading as module
from clipguard.data.decode.pixels import TURNS, Views
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits
from clipguard.types import Preprocessing
from tiny_reading import counting

SHARED = Path(__file__).parents[2] / "shared" / "data"


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    """Return `image` as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int = 6, width: int = 9, seed: int = 0) -> np.ndarray:
    """Return random RGB pixels."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def header_of_png(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds no pixels."""
    fields = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    empty = b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + fields + struct.pack(">I", zlib.crc32(fields)) + empty
    )


def reason(item, **options) -> str:
    """Return why `item` is unreadable."""
    with pytest.raises(UnreadableImage) as caught:
        decode(item, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_set(root: Path, per_class: int = 20, broken: tuple[str, ...] = ()) -> ImageSource:
    """Return a folder of two classes in which the named files are damaged."""
    for number, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            image = Image.fromarray(noise(seed=100 * number + i))
            (root / name / f"{i:02}.png").write_bytes(encoded(image))
    for name in broken:
        (root / name).write_bytes(b"GIF89a torn")
    return ImageSource.open(root)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_files_come_back_bit_for_bit(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    assert (decode(encoded(Image.fromarray(noise()), kind, **options)) == noise()).all()


def test_a_pillow_image_and_an_array_are_decoded_too():
    assert (decode(Image.fromarray(noise())) == noise()).all()
    assert (decode(noise()) == noise()).all()


def test_an_array_comes_back_as_a_copy_that_may_be_written_to():
    given_array = noise()
    decode(given_array)[:] = 0
    assert (given_array == noise()).all()
    assert decode(encoded(Image.fromarray(noise()))).flags.writeable


@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 1)])
def test_a_grey_array_gets_three_equal_channels(shape):
    grey = noise()[..., 0]
    assert (decode(grey.reshape(shape)) == grey[..., None]).all()


def test_an_array_with_transparency_is_read_without_it():
    array = np.array([[[0, 0, 0, 0], [9, 8, 7, 51], [1, 2, 3, 255]]], np.uint8)
    assert decode(array).tolist() == [[[0, 0, 0], [9, 8, 7], [1, 2, 3]]]


@pytest.mark.parametrize("array", [np.zeros((2, 3, 5), np.uint8), np.zeros((2, 2, 3)), np.zeros(3, np.uint8)])
def test_an_array_that_is_no_image_is_unreadable(array):
    assert str(array.dtype) in reason(array)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16", "HSV"]
)
def test_every_mode_of_pillow_becomes_rgb(mode):
    image = Image.fromarray(noise()).convert("L" if mode in ("I", "F", "I;16") else "RGB").convert(mode)
    pixels = decode(image)
    assert pixels.shape == (6, 9, 3)
    assert pixels.dtype == np.uint8


def test_what_lies_below_transparent_pixels_is_read_as_training_tools_read_it():
    pixels = np.array([[[255, 0, 0, 0], [0, 9, 0, 51], [1, 2, 3, 255]]], np.uint8)
    image = Image.fromarray(pixels, "RGBA")
    assert np.array_equal(decode(encoded(image)), np.array(image.convert("RGB")))
    assert decode(encoded(image)).tolist() == pixels[..., :3].tolist()
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert decode(encoded(palette, transparency=0)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert decode(encoded(Image.new("L", (1, 1), 7), transparency=7)).tolist() == [[[7, 7, 7]]]
    grey = Image.fromarray(np.array([[[7, 0]]], np.uint8), "LA")
    assert decode(encoded(grey)).tolist() == [[[7, 7, 7]]]
    assert decode(encoded(Image.new("RGB", (1, 1), (7, 8, 9)), transparency=(7, 8, 9))).tolist() == [
        [[7, 8, 9]]
    ]


@pytest.mark.parametrize(("least", "transparent"), [(0, True), (254, True), (255, False)])
def test_images_with_transparent_pixels_are_told_from_others(least, transparent):
    pixels = np.full((4, 4, 4), 255, np.uint8)
    pixels[0, 0, 3] = least
    view = Preprocessing(size=(4, 4))
    for item in (encoded(Image.fromarray(pixels, "RGBA")), pixels):
        (views,) = Decoder(Limits()).results((view,), [item])
        assert views.transparent == transparent


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_are_scaled_not_cut_off(kind):
    deep = np.array([[0, 257, 32895, 65535]], np.uint16)
    assert decode(encoded(Image.fromarray(deep), kind))[0, :, 1].tolist() == [0, 1, 128, 255]


def test_fractions_are_stretched_to_the_whole_range_and_nan_is_no_harm():
    pixels = np.array([[0, 0.5, 1, np.nan]], np.float32)
    assert decode(encoded(Image.fromarray(pixels), "TIFF"))[0, :, 0].tolist() == [0, 128, 255, 0]
    assert not decode(Image.fromarray(np.full((2, 2), 7, np.float32))).any()


@pytest.mark.parametrize("orientation", range(10))
def test_a_photograph_is_turned_upright(orientation):
    upright = noise()
    # What a camera held the other way stores: the inverse of the turn that puts it right.
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    stored = Image.fromarray(upright)
    stored = stored.transpose(TURNS[inverse]) if inverse in TURNS else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(stored, exif=exif)
    assert (decode(file) == upright).all()
    source = ImageSource.open(
        [(Image.open(io.BytesIO(file)), label) for label in range(2)], classes=["a", "b"]
    )
    assert common_size(source) == (6, 9)


def test_orientation_one_to_eight_agree_with_the_standard():
    # Per EXIF: where row 0 and column 0 of the stored pixels belong in the upright image.
    stored = np.zeros((2, 3, 3), np.uint8)
    stored[0, 0] = 255
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    for orientation, place in corner.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        pixels = decode(encoded(Image.fromarray(stored), exif=exif))
        assert pixels.shape[:2] == ((2, 3) if orientation < 5 else (3, 2))
        assert pixels[place].min() == 255


def test_a_png_whose_pixels_are_damaged_is_unreadable_and_not_black():
    damaged = header_of_png(2, 2)[:33]
    content = b"IDAT" + b"\xff" * 50
    damaged += struct.pack(">I", 50) + content + struct.pack(">I", zlib.crc32(content))
    assert "broken" in reason(damaged + b"\0\0\0\0IEND" + struct.pack(">I", zlib.crc32(b"IEND")))


def test_damaged_exif_does_not_make_an_image_unreadable():
    file = encoded(Image.fromarray(noise()), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(file).shape == (6, 9, 3)


def test_an_image_above_the_limit_is_not_decoded_and_the_limit_is_a_setting():
    assert "limit of 53" in reason(encoded(Image.fromarray(noise())), limits=Limits(pixels=53))
    assert decode(encoded(Image.fromarray(noise())), limits=Limits(pixels=54)).shape == (6, 9, 3)
    assert "limit" in reason(header_of_png(10_000, 10_000))
    assert "exceeds limit" in reason(header_of_png(2**31 - 1, 2**31 - 1))


def test_formats_that_run_programs_are_not_opened():
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n"
    assert reason(script) == "not an image of a known format"


@pytest.mark.parametrize(
    "item",
    [b"", b"text", b"GIF89a torn", encoded(Image.fromarray(noise(40, 40)), "JPEG")[:-300], Failed("gone")],
)
def test_what_is_no_image_has_a_reason_that_is_the_same_in_every_run(item):
    assert reason(item) == reason(item)
    assert "0x" not in reason(item)


@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]), st.data())
def test_damage_anywhere_gives_pixels_or_a_reason_and_no_other_error(kind, data):
    file = bytearray(encoded(Image.fromarray(noise(16, 16)), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    torn = bytes(file[: data.draw(st.integers(0, len(file)))])
    with contextlib.suppress(UnreadableImage):
        assert decode(torn, limits=Limits(pixels=10_000)).ndim == 3


def test_pillow_says_nothing_on_the_terminal():
    code = """
import io, warnings
from PIL import Image
from clipguard.data.decode import decode, UnreadableImage
warnings.simplefilter("always")
palette = Image.new("P", (4, 4)); file = io.BytesIO()
palette.save(file, "PNG", transparency=b"\\x00\\x10"); decode(file.getvalue())
tiff = io.BytesIO(); Image.new("RGB", (4, 4)).save(tiff, "TIFF")
Image.MAX_IMAGE_PIXELS = 10
decode(file.getvalue())
for cut in range(8, len(tiff.getvalue())):
    for damaged in (tiff.getvalue()[:cut], tiff.getvalue()[:cut] + b"\\xff" * 40):
        try:
            decode(damaged)
        except UnreadableImage:
            pass
warnings.warn("still printed")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert [line.partition(" ")[2] for line in done.stderr.splitlines()] == ["UserWarning: still printed"]


# Whole sources


def test_images_are_read_in_order_with_their_labels_and_ids(tmp_path):
    source = write_set(tmp_path, per_class=3)
    images, unreadable = read_images(source, Preprocessing(size=(6, 9)))
    assert unreadable == ()
    assert images.ids == source.ids
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.class_names == ("cat", "dog")
    assert (images.images == [noise(seed=seed) for seed in (0, 1, 2, 100, 101, 102)]).all()
    assert read_images(source, Preprocessing(size=(3, 3)))[0].images.shape == (6, 3, 3, 3)


def test_unreadable_images_are_listed_with_a_reason_and_left_out(tmp_path):
    source = write_set(tmp_path, broken=("cat/03.png", "dog/19.png"))
    images, unreadable = read_images(source, Preprocessing(size=(6, 9)))
    assert [entry.id for entry in unreadable] == ["cat/03.png", "dog/19.png"]
    assert all(entry.reason for entry in unreadable)
    assert len(images) == 38
    assert set(images.ids) == set(source.ids) - {"cat/03.png", "dog/19.png"}
    assert (images.images[3] == noise(seed=4)).all()
    assert np.bincount(images.labels).tolist() == [19, 19]


def test_exactly_ten_per_cent_unreadable_pass_and_one_more_is_an_error(tmp_path):
    broken = [f"cat/{i:02}.png" for i in range(5)]
    assert (
        len(read_images(write_set(tmp_path / "a", broken=tuple(broken[:4])), Preprocessing(size=(6, 9)))[1])
        == 4
    )
    with pytest.raises(ClipguardError, match=r"5 of 40 images .* more than 10%, first 'cat/00.png'"):
        read_images(write_set(tmp_path / "b", broken=tuple(broken)), Preprocessing(size=(6, 9)))


def test_a_class_that_loses_all_its_images_is_an_error(tmp_path):
    write_set(tmp_path)
    (tmp_path / "eel").mkdir()
    (tmp_path / "eel" / "0.png").write_bytes(b"")
    with pytest.raises(ClipguardError, match=r"class 'eel' .* 'eel/0.png' \(empty\)"):
        read_images(ImageSource.open(tmp_path), Preprocessing(size=(6, 9)))


def test_a_class_that_was_empty_before_is_no_error(tmp_path):
    write_set(tmp_path, broken=("cat/03.png",))
    (tmp_path / "eel").mkdir()
    assert len(read_images(ImageSource.open(tmp_path), Preprocessing(size=(6, 9)))[0]) == 39
    check_readable(ImageSource.open(tmp_path), (Unreadable("cat/03.png", "torn"),))


def test_rows_are_hashed_and_decoded_one_by_one_at_every_size_asked_for(tmp_path):
    source = write_set(tmp_path, broken=("cat/03.png",))
    whole, small = Preprocessing(size=(6, 9)), Preprocessing(size=(3, 4))
    reads = read_rows(source, np.array([1, 3, 21]), (whole, small), Decoder(source.limits))
    results = {read.row: read for read in reads}
    assert list(results) == [1, 3, 21]
    for row, pixels in ((1, noise(seed=1)), (21, noise(seed=101))):
        views = results[row].views
        assert isinstance(views, Views)
        assert views.size == (6, 9)
        assert (views.images[0] == pixels).all()
        assert (views.images[1] == prepared(pixels, small)).all()
    assert isinstance(results[3].views, Unreadable)
    assert results[3].views.id == "cat/03.png"
    for row, read in results.items():
        content = (tmp_path / source.ids[row]).read_bytes()
        assert (read.contents.size, read.contents.sha256) == (len(content), hashlib.sha256(content).digest())


def test_progress_ends_with_all_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "REPORT_EVERY", 15)
    calls = []
    read_images(
        write_set(tmp_path), Preprocessing(size=(6, 9)), lambda done, total: calls.append((done, total))
    )
    assert calls == [(15, 40), (30, 40), (40, 40)]


def test_the_common_size_is_that_of_most_and_of_equals_the_larger():
    shapes = [(4, 6)] * 3 + [(5, 5)] * 2 + [(1, 20), (6, 5)]
    pairs = [(np.zeros(shape, np.uint8), row % 2) for row, shape in enumerate(shapes)]
    assert common_size(ImageSource.open(pairs, classes=["a", "b"])) == (4, 6)
    assert common_size(ImageSource.open(pairs[2:], classes=["a", "b"])) == (5, 5)


def test_the_sample_is_spread_over_the_whole_source_and_skips_the_unreadable(tmp_path):
    source = write_set(tmp_path, broken=("cat/00.png",))
    for name in ("cat/13.png", "dog/19.png"):
        (tmp_path / name).write_bytes(encoded(Image.new("L", (30, 20))))
    # Rows 0 (which is torn), 13, 26 and 39.
    assert sampled_sizes(source, 4).most_common(1)[0][0] == (20, 30)
    assert common_size(source) == (6, 9)


def test_of_a_file_that_is_read_from_row_groups_the_sample_is_the_first_rows_of_some(tmp_path):
    sizes = [(4, 5) if row % 50 < 3 else (6, 9) for row in range(400)]
    contents = [encoded(Image.new("L", (w, h))) for h, w in sizes]
    cells = pa.array([{"bytes": content, "path": None} for content in contents])
    table = pa.table({"image": cells, "label": np.arange(400) % 2})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=50)
    source = counting(ImageSource.open(tmp_path / "a.parquet", classes=["a", "b"]))
    assert sampled_sizes(source, 24).most_common(1)[0][0] == (4, 5)
    assert source.reader.rows == [first + row for first in range(0, 400, 50) for row in range(3)]
    source.reader.rows.clear()
    sampled_sizes(source, 3)
    assert source.reader.rows == [0, 200, 350]
    some = counting(ImageSource.open(tmp_path / "a.parquet", classes=["a", "b"], rows=(48, 60)))
    assert sampled_sizes(some, 100).most_common(1)[0][0] == (6, 9)
    # Six of each group, of which the first has two.
    assert some.reader.rows == list(range(48, 56))


def test_a_sample_without_any_readable_image_is_an_error():
    source = ImageSource.open([(b"x", 0), (b"", 1)], classes=["a", "b"])
    with pytest.raises(ClipguardError, match="none of 2 sampled"):
        common_size(source)


@pytest.mark.parametrize(("name", "size"), [("cifar10", (32, 32)), ("imagenette-80", (80, 80))])
def test_real_images_are_all_readable_at_their_own_size(name, size):
    if not (SHARED / name).exists():
        pytest.skip(f"shared data set {name} is missing")
    source = ImageSource.open(SHARED / name / "test.parquet", rows=(0, 1100))
    assert common_size(source) == size
    images, unreadable = read_images(source, Preprocessing(size=size))
    assert unreadable == ()
    assert images.images.shape == (1100, *size, 3)
    first = np.asarray(Image.open(io.BytesIO(next(source.read(range(1))))).convert("RGB"))
    assert (images.images[0] == first).all()
