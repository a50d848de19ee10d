"""Triggers pixel by pixel."""

import math


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
