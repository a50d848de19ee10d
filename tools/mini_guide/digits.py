"""Printed digits, distorted until they resemble handwriting. No handwritten sample is used."""

from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy.ndimage import gaussian_filter, map_coordinates

from clipguard.seeds import Seed

CANVAS = 64
SIDE = 28
FAMILIES = ("DejaVu", "STIXGeneral", "cmr", "cmss", "cmtt", "cmb", "cmmi")


def render_digits(count: int, seed: Seed) -> tuple[UInt8[np.ndarray, "n 28 28 3"], Int64[np.ndarray, "n"]]:
    """Return `count` grey images, white on black or, one in four, the reverse, and their digits in turn."""
    generator = seed.generator()
    labels = np.arange(count) % 10
    fonts = _fonts()
    images = np.stack([_render(str(digit), fonts, generator) for digit in labels])
    return np.repeat(images[..., None], 3, axis=3), labels


def _fonts() -> list[Path]:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    named = (path for path in sorted(folder.glob("*.ttf")) if "Display" not in path.name)
    return [path for path in named if any(family in path.name for family in FAMILIES)]


def _render(text: str, fonts: list[Path], generator: np.random.Generator) -> UInt8[np.ndarray, "28 28"]:
    uniform, middle = generator.uniform, CANVAS / 2
    font = ImageFont.truetype(str(fonts[generator.integers(len(fonts))]), int(generator.integers(34, 47)))
    image = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    corner = (middle - (left + right) / 2, middle - (top + bottom) / 2)
    stroke = int(generator.choice([0, 0, 1, 2]))
    draw.text(corner, text, font=font, fill=255, stroke_width=stroke, stroke_fill=255)
    image = image.rotate(uniform(-18, 18), Image.Resampling.BICUBIC)
    shear = uniform(-0.35, 0.35)
    across = (uniform(0.8, 1.25), shear, -shear * middle + uniform(-4, 4))
    down = (uniform(-0.1, 0.1), uniform(0.8, 1.25), uniform(-4, 4))
    image = image.transform(image.size, Image.Transform.AFFINE, (*across, *down), Image.Resampling.BICUBIC)
    image = _bend(image, generator)
    if uniform() < 0.4:
        image = image.filter((ImageFilter.MinFilter, ImageFilter.MaxFilter)[generator.integers(2)](3))
    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    pixels = pixels * 255 / max(float(pixels.max()), 1)
    return (255 - pixels if uniform() < 0.25 else pixels).clip(0, 255).astype(np.uint8)


def _bend(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Return the image under a smooth random displacement, as a hand that trembles would draw it."""
    smoothness, strength = generator.uniform(4, 7), generator.uniform(20, 55)
    pixels = np.asarray(image, np.float32)
    shifts = [
        gaussian_filter(generator.uniform(-1, 1, pixels.shape), smoothness) * strength for _ in range(2)
    ]
    bent = map_coordinates(pixels, np.mgrid[:CANVAS, :CANVAS] + np.stack(shifts), order=1)
    return Image.fromarray(bent.clip(0, 255).astype(np.uint8))
