"""Triggers pixel by pixel."""

import math

import numpy as np


def rounded(value):
    """Return the nearest grey level, halves to the even one."""
    return min(255, max(0, round(value)))


def sinusoid(pixels, amplitude, frequency):
    """Return rows of pixels with the sinusoid over the columns added; `pixels` is a nested list [h][w][3]."""
    width = len(pixels[0])
    return [
        [
            [
                rounded(value + amplitude * math.sin(2 * math.pi * column * frequency / width))
                for value in pixel
            ]
            for column, pixel in enumerate(row)
        ]
        for row in pixels
    ]


def blended(pixels, pattern, alpha):
    """Return the mix of two nested lists [h][w][3]."""
    return [
        [
            [(1 - alpha) * value + alpha * other for value, other in zip(pixel, noise, strict=True)]
            for pixel, noise in zip(row, other_row, strict=True)
        ]
        for row, other_row in zip(pixels, pattern, strict=True)
    ]


def quantised(pixels, levels):
    """Return nested lists whose values are the nearest of `levels` evenly spaced ones, then whole numbers."""
    if isinstance(pixels, list):
        return [quantised(part, levels) for part in pixels]
    steps = [255 * step / (levels - 1) for step in range(levels)]
    return rounded(min(steps, key=lambda step: abs(step - pixels)))


def dct_matrix(size):
    """Return the orthonormal DCT-II as a matrix, by its definition."""
    rows = []
    for k in range(size):
        scale = math.sqrt((1 if k == 0 else 2) / size)
        rows.append([scale * math.cos(math.pi * (2 * n + 1) * k / (2 * size)) for n in range(size)])
    return np.array(rows)


def chroma_moved(pixels, magnitude, places):
    """Return [h][w][3] through YUV and the DCT of U and V, `magnitude` added at `places`, and back."""
    to_yuv = np.array([[0.299, 0.587, 0.114], [0, 0, 0], [0, 0, 0]])
    to_yuv[1] = 0.492 * (np.array([0, 0, 1]) - to_yuv[0])
    to_yuv[2] = 0.877 * (np.array([1, 0, 0]) - to_yuv[0])
    planes = np.array(pixels, dtype=float) @ to_yuv.T
    rows, columns = dct_matrix(planes.shape[0]), dct_matrix(planes.shape[1])
    for plane in (1, 2):
        spectrum = rows @ planes[..., plane] @ columns.T
        for row, column in places:
            spectrum[row, column] += magnitude
        planes[..., plane] = rows.T @ spectrum @ columns
    return planes @ np.linalg.inv(to_yuv).T


def cubic_weight(distance):
    """Return the weight of cubic convolution with a = -0.75 (Keys 1981)."""
    a, d = -0.75, abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def bicubic(points, size):
    """Return a list of values interpolated to `size` places, ends on ends, the ends repeated outside."""
    last, values = len(points) - 1, []
    for place in range(size):
        at = place * last / (size - 1)
        near = range(math.floor(at) - 1, math.floor(at) + 3)
        values.append(sum(cubic_weight(at - i) * points[min(last, max(0, i))] for i in near))
    return values


def bicubic_plane(points, height, width):
    """Return a square nested list of values interpolated to [height][width]."""
    wide = [bicubic(row, width) for row in points]
    columns = [bicubic([row[j] for row in wide], height) for j in range(width)]
    return [[columns[j][i] for j in range(width)] for i in range(height)]


def sampled(pixels, x, y):
    """Return the pixel at x, y in [-1, 1] (clamped), -1 and 1 being the middles of the outermost pixels."""
    height, width = len(pixels), len(pixels[0])
    across = (min(1, max(-1, x)) + 1) / 2 * (width - 1)
    down = (min(1, max(-1, y)) + 1) / 2 * (height - 1)
    left, top = min(int(across), width - 2), min(int(down), height - 2)
    right, low = across - left, down - top
    return [
        (1 - low) * ((1 - right) * pixels[top][left][c] + right * pixels[top][left + 1][c])
        + low * ((1 - right) * pixels[top + 1][left][c] + right * pixels[top + 1][left + 1][c])
        for c in range(3)
    ]


def warped(pixels, field, strength):
    """Return [h][w][3] sampled at identity + strength field / side; `field` is [h][w](x, y)."""
    height, width = len(pixels), len(pixels[0])
    return [
        [
            sampled(
                pixels,
                2 * j / (width - 1) - 1 + strength * field[i][j][0] / width,
                2 * i / (height - 1) - 1 + strength * field[i][j][1] / height,
            )
            for j in range(width)
        ]
        for i in range(height)
    ]
