"""A reading pass with a model that costs nothing, a reader that counts, and sources of tiny images."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from clipguard.clip.embeddings import ReadingPass, read_source
from clipguard.clip.model import Clip
from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.engine import LocalEngine, ShardWork
from clipguard.data import ImageSource, Item
from clipguard.types import Preprocessing

SIZE = (8, 10)
VIEW = Preprocessing(size=SIZE)


class Power(BaseException):
    """What a kill is to the code: nothing that it catches."""


class TinyEncoder(torch.nn.Module):
    """Embeds an image as its normalised colours; counts its images and fails on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.zeros(()))
        self.images, self.fails_after = 0, None

    def encode_image(self, pixels: torch.Tensor, normalize: bool) -> torch.Tensor:
        """Return one vector an image."""
        if self.fails_after is not None and self.images >= self.fails_after:
            raise Power
        self.images += len(pixels)
        return torch.nn.functional.normalize(pixels.flatten(1), dim=1)


def tiny_guide() -> ClipGuide:
    """Return a guide around a new encoder, which is its `clip.network`."""
    guide = ClipGuide("tiny")
    vars(guide)["clip"] = Clip(
        name="tiny",
        weights=Path(__file__),
        network=TinyEncoder(),
        preprocessing=Preprocessing(size=(4, 4), resize="shortest"),
        tokenizer=list,
    )
    return guide


class Counting:
    """A reader that notes the rows that were fetched, and how often reading began."""

    def __init__(self, reader: Any) -> None:
        self.reader, self.rows, self.begun = reader, [], 0

    def read(self, rows: np.ndarray) -> Iterator[Item]:
        """Return one item a row."""
        self.begun += 1
        for row, item in zip(rows.tolist(), self.reader.read(rows), strict=True):
            self.rows.append(row)
            yield item

    def file_states(self, rows: np.ndarray) -> Any:
        """Return what the reader says."""
        return self.reader.file_states(rows)

    def starts(self) -> Any:
        """Return what the reader says."""
        return self.reader.starts()


def counting(source: ImageSource) -> ImageSource:
    """Return the same source, its reader `Counting`."""
    return replace(source, reader=Counting(source.reader))


class UnitByUnit:
    """An engine that hands over one unit at a time, the last first, as one with many processes may."""

    def run(self, work: ShardWork, units: Sequence[Sequence[int]]) -> Iterator[int]:
        """Return the number of each shard as it is finished."""
        for unit in reversed(units):
            yield from work(unit)


def mixed_folder(path: Path, n: int = 24, broken: Sequence[int] = ()) -> ImageSource:
    """Return a source of n images of different sizes in two class folders, those of `broken` unreadable."""
    draw = np.random.default_rng(0)
    for row in range(n):
        file = path / ("cat" if row < 10 else "dog") / f"{row:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        size = (8 + row % 3, 10, 3) if row % 4 else (*SIZE, 3)
        Image.fromarray(draw.integers(0, 256, size, dtype=np.uint8)).save(file)
        if row in broken:
            file.write_bytes(b"no image at all")
    return ImageSource.open(path)


def read_into(
    folder: Path,
    source: ImageSource,
    guide: ClipGuide | None = None,
    views: dict[str, Preprocessing] | None = None,
    progress: Any = lambda done, total: None,
    engine: Any = None,
    again: bool = False,
    lanes: int = 1,
) -> Path:
    """Read a source into FOLDER/embeddings and a folder beside it for each view; return the former.

    With `again`, only the images are made, of what a first pass has read.
    """
    embeddings = folder / "embeddings"
    images = tuple(
        (folder / name, view) for name, view in ({"images": VIEW} if views is None else views).items()
    )
    for each in (embeddings, *(path for path, _ in images)):
        each.mkdir(parents=True, exist_ok=True)
    reading = ReadingPass(
        source=source,
        guide=None if again else guide or tiny_guide(),
        folder=embeddings,
        images=images,
        lanes=lanes,
    )
    read_source(reading, engine or LocalEngine(), progress)
    return embeddings
