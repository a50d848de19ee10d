"""The defence is blind: it neither loads what knows the truth nor changes a byte when the truth does."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipguard.clip.zero_shot import ClipGuide, guide_from_name
from clipguard.compute.small_nets import SmallNetConfig
from clipguard.compute.training import Recipe
from clipguard.lab.attacks.patterned import BadNets
from clipguard.lab.ground_truth import PoisonTruth, read_truth, write_truth
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.defender import Defender
from clipguard.seeds import Seed
from clipguard.types import ImageSet, image_set

SOURCES = Path(__file__).parents[1] / "src" / "clipguard"
NO_PRODUCT = ("cli", "lab", "__pycache__")
PRODUCT = sorted(path.name for path in SOURCES.iterdir() if path.is_dir() and path.name not in NO_PRODUCT)


def parts_after(code: str) -> set[str]:
    """Return the packages of clipguard that a fresh interpreter has loaded after `code`."""
    ending = "\nimport json, sys; print(json.dumps([name for name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code + ending], capture_output=True, text=True, check=True)
    names = json.loads(done.stdout.splitlines()[-1])
    return {name.split(".")[1] for name in names if name.startswith("clipguard.")}


def test_the_product_as_a_whole_loads_nothing_that_knows_the_truth():
    # One interpreter for all of its modules, since torch is slow to start.
    files = sorted(file for name in PRODUCT for file in (SOURCES / name).rglob("*.py"))
    names = [".".join(file.relative_to(SOURCES.parent).with_suffix("").parts) for file in files]
    loaded = parts_after("".join(f"import {name.removesuffix('.__init__')}\n" for name in names))
    assert {"detection", "mitigation", "pipeline", "defenses"} <= set(PRODUCT) <= loaded
    assert not {"lab", "cli"} & loaded


def test_the_contract_lets_the_command_line_alone_import_what_knows_the_truth():
    project = tomllib.loads((SOURCES.parents[1] / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    (blind,) = [contract for contract in contracts if contract["name"].startswith("blind")]
    assert blind["type"] == "protected"
    assert blind["protected_modules"] == ["clipguard.lab"]
    assert blind["allowed_importers"] == ["clipguard.cli"]


@pytest.mark.parametrize("name", PRODUCT)
def test_no_module_of_the_product_names_what_knows_the_truth(name):
    # Also an import inside a function, which loading the module would not show.
    code = "\n".join(file.read_text() for file in (SOURCES / name).rglob("*.py"))
    imports = re.findall(r"^\s*(?:from|import) .*", code, re.MULTILINE)
    assert imports
    assert not [line for line in imports if "lab" in re.findall(r"\w+", line)]


def test_the_check_sees_a_module_that_knows_the_truth():
    assert parts_after("import clipguard.lab.evaluation") >= {"lab"}


def shapes(n: int = 60, size: int = 16) -> ImageSet:
    """Return bright discs, bars and crosses on noise: three classes that a small net can learn."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 90, (n, size, size, 3), dtype=np.uint8)
    y, x = np.mgrid[:size, :size] - size // 2
    kinds = [x**2 + y**2 < 20, abs(y) < 2, (abs(x) < 2) | (abs(y) < 2)]
    labels = np.arange(n) % 3
    for image, label in zip(images, labels, strict=True):
        image[kinds[label]] += 120
    return image_set(images, labels, ("disc", "bar", "cross"), tuple(f"{row:03d}" for row in range(n)))


def write_folder(folder: Path, data: ImageSet, truth: PoisonTruth) -> None:
    """Write the data as an image folder, its truth beside it."""
    for image, label, name in zip(data.images, data.labels, data.ids, strict=True):
        file = folder / "images" / data.class_names[label] / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    write_truth(truth, folder / "truth.parquet")


def shuffled(truth: PoisonTruth) -> PoisonTruth:
    """Return a truth with as many poisons and cover samples elsewhere, other labels and another target."""
    order = np.random.default_rng(1).permutation(len(truth.poisoned))
    return replace(
        truth,
        poisoned=truth.poisoned[order],
        cover=truth.poisoned,
        original_labels=truth.original_labels[order],
        attack="another",
        target=2,
    )


def artefacts(images: Path, run_dir: Path, guide: ClipGuide) -> dict[str, bytes]:
    """Return the bytes of what scan and repair publish."""
    config, short = DefenseConfig(), Recipe(epochs=1, lr=0.02, batch_size=20)

    def small(net: SmallNetConfig) -> SmallNetConfig:
        return replace(net, architecture="shallow-4", epochs=1, lr=0.02, batch_size=20, fewest_steps=0)

    config = replace(
        config,
        architecture="preactresnet18-4",
        victim=replace(short, epochs=2),
        early_model=small(config.early_model),
        trigger_detector=replace(config.trigger_detector, net=small(config.trigger_detector.net)),
        unlearning=replace(config.unlearning, recipe=short),
    )
    Defender(guide, run_dir, config=config).fit(images)
    return {name: (run_dir / name).read_bytes() for name in ("samples.parquet", "model.safetensors")}


def test_another_truth_beside_the_data_changes_no_byte_of_what_the_defence_writes(tmp_path):
    data, truth = BadNets(rate=0.1).poison(shapes(), Seed(0))
    write_folder(tmp_path / "a", data, truth)
    shutil.copytree(tmp_path / "a" / "images", tmp_path / "b" / "images")
    write_truth(shuffled(truth), tmp_path / "b" / "truth.parquet")
    one, other = (read_truth(tmp_path / folder / "truth.parquet") for folder in "ab")
    assert not np.array_equal(one.poisoned, other.poisoned)
    guide = guide_from_name("mini")
    first = artefacts(tmp_path / "a" / "images", tmp_path / "runs-a", guide)
    second = artefacts(tmp_path / "b" / "images", tmp_path / "runs-b", guide)
    assert first == second
    # The comparison can fail: one pixel more of the data does change what is written.
    victim = next((tmp_path / "b" / "images" / "bar").iterdir())
    pixels = np.array(Image.open(victim))
    pixels[0, 0] = 255
    Image.fromarray(pixels).save(victim)
    third = artefacts(tmp_path / "b" / "images", tmp_path / "runs-c", guide)
    assert all(third[name] != first[name] for name in first)
