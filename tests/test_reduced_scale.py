"""data.decode.pixels: what a large JPEG gives up when it is decoded at a reduced scale."""

import io

import numpy as np
import pytest
from PIL import Image

from clipguard.data.decode import decode, prepared
from clipguard.data.decode.pixels import decoded
from clipguard.safety.limits import Limits
from clipguard.types import Preprocessing


@pytest.mark.parametrize("turn", [1, 6])
def test_a_large_jpeg_is_decoded_at_reduced_scale_to_nearly_the_same_views_and_its_own_size(turn):
    draw = np.random.default_rng(0)
    coarse = Image.fromarray(draw.integers(0, 256, (12, 20, 3), dtype=np.uint8))
    large, buffer = coarse.resize((800, 480), Image.Resampling.BICUBIC), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = turn
    large.save(buffer, "JPEG", quality=90, exif=exif)
    views = (Preprocessing(size=(32, 32), resize="shortest"), Preprocessing(size=(24, 40)))
    whole = decode(buffer.getvalue())
    result = decoded(views, buffer.getvalue(), Limits())
    assert result.size == whole.shape[:2] == ((480, 800) if turn == 1 else (800, 480))
    for view, made in zip(views, result.images, strict=True):
        # Made alone, or beside one that needs all of the pixels, it is the same.
        for others in ((view,), (view, Preprocessing(size=(400, 400)))):
            assert np.array_equal(decoded(others, buffer.getvalue(), Limits()).images[0], made)
        exact = prepared(whole, view).astype(int)
        assert np.abs(made - exact).max() <= 4
        assert not np.array_equal(made, exact)
