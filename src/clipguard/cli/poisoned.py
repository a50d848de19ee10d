"""Folders that `clipguard attack` writes: a poisoned training set, its truth, and test sets."""

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Int64

from clipguard.cli.options import AttackOptions
from clipguard.cli.outcome import Outcome
from clipguard.cli.text import rows_from, settings_from, size_from
from clipguard.compute.device import choose_device, computing_on
from clipguard.data import Columns, ImageSource, columns_of_test
from clipguard.data.decode import common_size, read_images
from clipguard.data.writer import write_parquet
from clipguard.errors import ClipguardError
from clipguard.lab.attacks import Attack, attack_named, fit_attack, refuse_general
from clipguard.lab.attacks import triggered as with_trigger
from clipguard.lab.benchmark.places import cache_folder
from clipguard.lab.ground_truth import PoisonTruth, read_truth, write_truth
from clipguard.outputs.progress import warn, working
from clipguard.runs import read_json, write_json
from clipguard.runs.files import new_folder, refuse_full
from clipguard.seeds import Seed, Stream
from clipguard.types import ImageSet, Preprocessing, Progress, image_set

if TYPE_CHECKING:
    from rich.console import Console

TRAIN: Final = "train.parquet"
TEST: Final = "test.parquet"
TRIGGERED: Final = "test-triggered.parquet"
TRUTH: Final = "truth.parquet"
ABOUT: Final = "attack.json"
MODEL: Final = "model.safetensors"

READ_IMAGES: Final = "read the images"
READ_TEST_IMAGES: Final = "read the test images"


def is_attack_folder(path: Path) -> bool:
    """Return whether `clipguard attack` wrote the folder."""
    return (path / ABOUT).is_file()


def read_target_mapping(folder: Path, k: int) -> Int64[np.ndarray, "k"] | None:
    """Return the class that the folder's backdoor sends each of k classes to, None where it sends none.

    Raises:
        ClipguardError: the folder's description is damaged, or written by an older version.
    """
    about = read_json(folder / ABOUT)
    mapping = about.get("target_mapping", "") if isinstance(about, dict) else ""
    if mapping is None:
        return None
    whole = isinstance(mapping, list) and len(mapping) == k
    if not whole or not all(type(label) is int and 0 <= label < k for label in mapping):
        raise ClipguardError(f"{folder / ABOUT} is damaged: run clipguard attack again")
    return np.array(mapping, dtype=np.int64)


def truth_beside(source: Path, test: Path | None) -> PoisonTruth | None:
    """Return the truth about `source` where it is the training set of the attack folder `test`, else None.

    Raises:
        ClipguardError: the truth is there but damaged.
    """
    if test is None or not is_attack_folder(test) or not (test / TRAIN).exists():
        return None
    return read_truth(test / TRUTH) if source.exists() and (test / TRAIN).samefile(source) else None


def run_attack(path: Path, options: AttackOptions) -> Outcome:
    """Return what was written into the folder `options.out`.

    Raises:
        ClipguardError: bad input, or a folder that is not empty.
    """
    refuse_full(options.out)
    own = settings_from(options.option, "--option")
    if options.mapping is not None:
        own["mapping"] = options.mapping
    refuse_general(own)
    attack = attack_named(options.attack, rate=options.rate, target=options.target, **own)
    cache = (options.cache or cache_folder()) / "attacks"
    seed = Seed(options.seed)
    with working(quiet=options.quiet) as progress, computing_on(choose_device(options.device)):
        train, test, unreadable = _read(path, options, progress)
        fit_seed = seed.child(Stream.ATTACK_FIT, options.attack)
        attack = fit_attack(attack, train, fit_seed, cache, progress)
        poisoned, truth = attack.poison(train, seed.child("attack", options.attack))
        if options.attack != "none" and not truth.poisoned.any():
            raise ClipguardError(f"{attack.rate:g} of {len(train)} images is none: give a higher --rate")
        # Also without a test set: a trigger that changes no training image is none.
        with_trigger(attack, train.images[truth.poisoned])
        classes = np.arange(len(train.class_names))
        mapping = attack.target_labels(classes, len(classes))
        triggered = None if test is None else _triggered(attack, test)
        about = {
            "rate": attack.rate,
            "options": own,
            "target_mapping": None if mapping is None else mapping.tolist(),
            "seed": options.seed,
            "source": str(path),
            "test_source": None if options.test is None else str(options.test),
        }
        counts = {
            "test": 0 if test is None else len(test),
            "triggered": 0 if triggered is None else len(triggered),
            "unreadable": unreadable,
        }
        sets = {TRAIN: poisoned, TEST: test, TRIGGERED: triggered}
        value = write_attack(options.out, sets, truth, about, counts)
    if unreadable:
        warn([f"{unreadable} images could not be read and were left out"])
    return Outcome(value=value, show=partial(show_attack, value), as_json=options.json)


def write_attack(
    out: Path,
    sets: dict[str, ImageSet | None],
    truth: PoisonTruth,
    about: dict[str, Any],
    counts: dict[str, int],
    weights: Path | None = None,
) -> dict[str, Any]:
    """Write the folder `out` of an attack, all or nothing, and return its description with its files.

    Args:
        out: the folder.
        sets: by their files' names, the training set among them.
        truth: about the training set.
        about: what the sets and the truth do not say.
        counts: likewise, of samples.
        weights: of a model trained on it.
    """
    written = {name: data for name, data in sets.items() if data is not None}
    train, poisoned, cover = written[TRAIN], int(truth.poisoned.sum()), int(truth.cover.sum())
    description = {
        "attack": truth.attack,
        "target": truth.target,
        **about,
        "classes": list(train.class_names),
        "size": list(train.images.shape[1:3]),
        "counts": {"train": len(train), "poisoned": poisoned, "cover": cover, **counts},
    }
    with new_folder(out) as part:
        for name, data in written.items():
            write_parquet(data, part / name)
        write_truth(truth, part / TRUTH)
        write_json(part / ABOUT, description)
        if weights is not None:
            shutil.copyfile(weights, part / MODEL)
    files = [*written, TRUTH, *([] if weights is None else [MODEL])]
    return {**description, "out": str(out), "files": [str(out / name) for name in files]}


def _read(path: Path, options: AttackOptions, progress: Progress) -> tuple[ImageSet, ImageSet | None, int]:
    """Return training set, test set at the same size, and the number of images that could not be read."""

    def opened(place: Path, rows: str | None, option: str, columns: Columns) -> ImageSource:
        kept = None if rows is None else rows_from(rows, option)
        return ImageSource.open(place, classes=options.classes, rows=kept, columns=columns)

    columns = options.columns.named()
    source = opened(path, options.rows, "--rows", columns)
    if not 0 <= options.target < len(source.class_names):
        raise ClipguardError(
            f"--target {options.target}: {path} has the labels 0 to {len(source.class_names) - 1}"
        )
    size = common_size(source) if options.size is None else size_from(options.size, "--size")
    squashed = Preprocessing(size=size)
    if options.test is None:
        if options.test_rows is not None:
            raise ClipguardError("--test-rows says which rows of --test to keep: give --test too")
        train, bad = read_images(source, squashed, partial(progress, READ_IMAGES))
        return train, None, len(bad)
    of_test = columns_of_test(options.test, columns)
    test_source = opened(options.test, options.test_rows, "--test-rows", of_test)
    if test_source.class_names != source.class_names:
        raise ClipguardError(
            f"{options.test} names other classes than {path}: give both the same, or --classes"
        )
    train, bad = read_images(source, squashed, partial(progress, READ_IMAGES))
    test, bad_tests = read_images(test_source, squashed, partial(progress, READ_TEST_IMAGES))
    return train, test, len(bad) + len(bad_tests)


def _triggered(attack: Attack, test: ImageSet) -> ImageSet | None:
    images = with_trigger(attack, np.asarray(test.images))
    return None if images is None else image_set(images, test.labels, test.class_names, test.ids)


def show_attack(value: dict[str, Any], console: "Console") -> None:
    """Print how many samples of the folder are poisoned, and its files."""
    counts = value["counts"]
    cover = f", {counts['cover']:,} more are cover samples" if counts["cover"] else ""
    console.print(
        f"{value['attack']}: {counts['poisoned']:,} of {counts['train']:,} training samples changed{cover}",
        markup=False,
    )
    for file in value["files"]:
        console.print(f"  {file}", soft_wrap=True, markup=False)
