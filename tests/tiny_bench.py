"""A benchmark of tiny images: its TOML file, and the folder it runs in."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tiny_runs import poisoned_set

SETTINGS = """
[defense_config]
entropy_map = {by = "class"}
early_model = {architecture = "shallow-8", fewest_steps = 0, epochs = 3, batch_size = 16}
trigger_detector.net = {architecture = "shallow-8", fewest_steps = 0, epochs = 3, batch_size = 16}
unlearning.recipe = {epochs = 2, batch_size = 32, flip = false, crop = 0.0}

[victim]
epochs = 10
lr = 0.1
batch_size = 16
flip = false
"""


@dataclass(frozen=True)
class TinyBench:
    """Where a tiny benchmark is."""

    file: Path
    out: Path
    cache: Path

    @property
    def arguments(self) -> tuple[object, ...]:
        """What follows `clipguard`."""
        return ("bench", self.file, "-o", self.out, "--cache", self.cache)


def tiny_bench(folder: Path, text: str = "", out: str = "run") -> TinyBench:
    """Return a benchmark of 96 training and 60 test images; `text` is what its file begins with."""
    for name, n, seed in (("train", 96, 0), ("test", 60, 1)):
        data, _ = poisoned_set(n, share=0, seed=seed)
        np.savez(
            folder / f"{name}.npz",
            images=data.images,
            labels=data.labels,
            class_names=np.array(data.class_names),
        )
    file = folder / "tiny.toml"
    files = 'data = [{name = "tiny", train = "train.npz", test = "test.npz"}]\n'
    nets = 'nets = ["shallow-8"]\n'
    file.write_text(files + nets + text + SETTINGS)
    return TinyBench(file=file, out=folder / out, cache=folder / "cache")
