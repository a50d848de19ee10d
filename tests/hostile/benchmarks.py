"""Hostile benchmark files: TOML that is too deep, too large or no TOML."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile.case import Case, trap

TOML: dict[str, bytes] = {
    "not UTF-8": b'attacks = ["\xff"]',
    "zeros": bytes(1000),
    "cut short": b'attacks = ["sig',
    "one key twice": b"seeds = [1]\nseeds = [2]",
    "lists nested too deep": b"seeds = " + b"[" * 50_000,
    "tables nested too deep": b"plan = " + b"{a=" * 20_000,
    "a key of 30,000 parts": b"a." * 30_000 + b"a = 1",
    "a header of 30,000 parts": b"[" + b"a." * 30_000 + b"a]",
    "larger than the limit": b"# " + b"x" * (1 << 20),
    "a number of 60,000 digits": b"seeds = [" + b"9" * 60_000 + b"]",
    "a seed of 400 digits": b"seeds = [" + b"9" * 400 + b"]",
    "a rate of NaN": b"rates = [nan]",
    "epochs without end": b"[victim]\nepochs = inf",
    "a date for a name": b"attacks = [1979-05-27]",
    "a module that is not there": b'defenses = ["no.such.module:factory"]',
    "a key of markup and control marks": b'"<script>\\u001b[2J\\n" = 1',
}


def _written(content: bytes) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        (root / "bench.toml").write_bytes(content)
        return root / "bench.toml"

    return make


def _trapped(root: Path) -> Path:
    return _written(trap(root))(root)


def _pipe(root: Path) -> Path:
    os.mkfifo(root / "bench.toml")
    return root / "bench.toml"


def _endless(root: Path) -> Path:
    (root / "bench.toml").symlink_to("/dev/zero")
    return root / "bench.toml"


def benchmark_cases() -> Iterator[Case]:
    """Return the cases."""
    makers = {what: _written(content) for what, content in TOML.items()}
    makers |= {"a pickle": _trapped, "a pipe": _pipe, "a device that never ends": _endless}
    for what, make in makers.items():
        yield Case(name=f"toml: {what}", expected="refused", make=make, reader="benchmark")
