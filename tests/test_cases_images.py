"""Images of more than 8 bits of grey: scaled by the bits in use, and said."""

import io

import numpy as np
import pytest
from PIL import Image

from clipguard.data.decode import Decoder, decode
from clipguard.safety.limits import Limits
from clipguard.types import Preprocessing


def deep(values, kind="PNG") -> bytes:
    """Return 16 bits of grey as a file."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(values, np.uint16)).save(file, kind)
    return file.getvalue()


# 6: X-rays


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_the_bits_in_use_become_all_grey_levels(bits, kind):
    ramp = np.linspace(0, (1 << bits) - 1, 256).round().reshape(16, 16)
    assert decode(deep(ramp, kind))[..., 0].ravel().tolist() == list(range(256))


@pytest.mark.parametrize("isolated", [True, False])
def test_the_bits_in_use_are_said_of_each_image_and_none_of_others(isolated):
    small = io.BytesIO()
    Image.new("L", (4, 4)).save(small, "PNG")
    items = [deep(np.full((4, 4), 4000)), deep(np.full((4, 4), 65000)), small.getvalue()]
    decoder = Decoder(Limits(isolated=isolated))
    views = list(decoder.results((Preprocessing(size=(4, 4)),), items))
    assert [view.bits for view in views] == [12, 16, 0]


def test_a_text_in_a_file_that_calls_itself_bits_is_no_bits():
    from PIL.PngImagePlugin import PngInfo

    file, info = io.BytesIO(), PngInfo()
    info.add_text("bits", "12")
    Image.new("RGB", (4, 4)).save(file, "PNG", pnginfo=info)
    view = next(Decoder(Limits()).results((Preprocessing(size=(4, 4)),), [file.getvalue()]))
    assert view.bits == 0
