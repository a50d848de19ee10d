"""Small labelled images on disk, and the command line run inside the test's own process."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipguard.cli import main

NAMES = ("cat", "dog")


@dataclass(frozen=True)
class Ran:
    """What one command line gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        value = json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
        assert isinstance(value, dict)
        return value


class CommandLine:
    """Runs `clipguard` with arguments of any type."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object) -> Ran:
        self.capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = self.capsys.readouterr()
        return Ran(code, captured.out, captured.err)


def refusing(clipguard: CommandLine, root: Path) -> Callable[..., None]:
    """Return what runs a command line that must fail in one line, after lines of what took its time.

    It must leave everything below `root` as it was.
    """

    def run(*arguments: object, expected: Sequence[str]) -> None:
        before = tree(root)
        ran = clipguard(*arguments)
        *progress, line = ran.err.splitlines()
        assert (ran.code, ran.out) == (2, "")
        assert all(" 20 of 20 in " in text or " images, " in text for text in progress)
        assert line.startswith("clipguard: ")
        assert "Traceback" not in line
        assert [word for word in expected if word not in line] == [], line
        assert tree(root) == before

    return run


def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small nets train for few epochs, for tests that are not about what they learn.

    With the least number of steps, they would see each of some dozen images a hundred times.
    """
    target = "clipguard.compute.small_nets.SmallNetConfig.total_epochs"
    monkeypatch.setattr(target, lambda config, _: config.epochs)


def pictures(n: int, seed: int = 0, size: int = 16) -> np.ndarray:
    """Return n noisy images, those of odd rows brighter."""
    generator = np.random.default_rng(seed)
    base = 60 + 110 * (np.arange(n) % 2)
    noise = generator.integers(-40, 40, (n, size, size, 3))
    return (base[:, None, None, None] + noise).astype(np.uint8)


def image_folder(root: Path, n: int = 60, seed: int = 0, names: tuple[str, ...] = NAMES) -> Path:
    """Return a folder of n PNG files, a sub-folder a class, taking turns."""
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
    for row, pixels in enumerate(pictures(n, seed)):
        Image.fromarray(pixels).save(root / names[row % len(names)] / f"{row:04d}.png")
    return root


def npz(path: Path, labels: np.ndarray, names: tuple[str, ...] = NAMES) -> Path:
    """Return an .npz file of as many images as there are labels."""
    np.savez(path, images=pictures(len(labels)), labels=labels, class_names=np.array(names))
    return path


def tree(root: Path) -> dict[str, bytes]:
    """Return every file and folder below `root` with its contents: what must not change."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else b"" for path in root.rglob("*")
    }


def jpeg_header() -> bytes:
    """Return the beginning of an image, and nothing after it."""
    buffer = io.BytesIO()
    Image.fromarray(pictures(1)[0]).save(buffer, "JPEG")
    return buffer.getvalue()[:100]
