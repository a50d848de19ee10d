"""What every attack is, and the two steps that all of them share."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8

from clipguard.errors import ClipguardError
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet, image_set

Mapping = Literal["all-to-one", "all-to-all"]
"""Every class to the target, or class y to y + 1 and the last one to 0."""


@runtime_checkable
class Attack(Protocol):
    """A frozen dataclass with one recipe: what is done to the training set and to test images."""

    @property
    def rate(self) -> float:
        """Fraction of all samples that are poisoned."""
        ...

    @property
    def target(self) -> int:
        """Class that the backdoor leads to; unused where each class leads to another one."""
        ...

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set and the truth about it; untouched samples stay bit-identical."""
        ...

    def trigger(self, images: Images) -> Images | None:
        """Return test images with the trigger, or None for a control, which has none."""
        ...

    def target_labels(self, labels: Int64[np.ndarray, "n"], k: int) -> Int64[np.ndarray, "n"] | None:
        """Return the class, of k, that an image of each true class is to be sent to; None without any target_labels."""
        ...


Progress = Callable[[int, int], None]
"""Called with (done, total) while a helper net trains."""


@runtime_checkable
class NeedsFitting(Protocol):
    """An attack whose trigger, or choice of labels, is made by a net that is trained on the data first."""

    @property
    def rate(self) -> float:
        """Fraction of all samples that are poisoned."""
        ...

    @property
    def target(self) -> int:
        """Class that the backdoor leads to."""
        ...

    def prepare(self, data: ImageSet, seed: Seed, cache: Path | None, report: Progress | None) -> Attack:
        """Return the attack with its helper, trained on `data` or read from `cache`."""
        ...


def prepare(
    attack: Attack | NeedsFitting,
    data: ImageSet,
    seed: Seed,
    cache: Path | None = None,
    report: Progress | None = None,
) -> Attack:
    """Return an attack that is ready to poison `data`: its helper net, if it needs one, is trained.

    Helpers are cached in the folder `cache` by their recipe, the data's contents and the seed.

    Raises:
        ClipguardError: the rate asks for no sample at all, which is told before anything is trained.
    """
    if not isinstance(attack, NeedsFitting):
        return attack
    if attack.rate and not round(attack.rate * len(data)):
        raise ClipguardError(f"poison rate {attack.rate:g} of {len(data)} images is none: give a higher rate")
    return attack.prepare(data, seed, cache, report)


def triggered(attack: Attack, images: Images) -> Images | None:
    """Return test images with the attack's trigger, None for a control, which has none.

    Raises:
        ClipguardError: it changes no image: a wave, say, may be zero at every column of some widths.
    """
    moved = attack.trigger(images)
    if moved is not None and len(images) and np.array_equal(moved, images):
        h, w = images.shape[1:3]
        raise ClipguardError(
            f"the trigger changes no pixel of images of {h} x {w}: choose another size or attack"
        )
    return moved


def check_mapping(mapping: str) -> None:
    """Refuse what is no `Mapping`.

    Raises:
        ClipguardError: there is no mapping of that name.
    """
    if mapping not in get_args(Mapping):
        raise ClipguardError(f"unknown mapping {mapping!r}: choose one of {', '.join(get_args(Mapping))}")


def mapped_labels(
    labels: Int64[np.ndarray, "n"], k: int, target: int, mapping: str = "all-to-one"
) -> Int64[np.ndarray, "n"]:
    """Return `target` for every label, or (label + 1) mod k where the mapping is all-to-all.

    Raises:
        ClipguardError: there is no mapping of that name.
    """
    check_mapping(mapping)
    return (labels + 1) % k if mapping == "all-to-all" else np.full_like(labels, target)


def choose(
    candidates: Int64[np.ndarray, "m"],
    rate: float,
    n: int,
    seed: Seed,
    taken: Int64[np.ndarray, "t"] | None = None,
) -> Int64[np.ndarray, "p"]:
    """Return round(rate n) rows drawn from `candidates` without replacement, ascending.

    Args:
        candidates: rows that can be changed.
        rate: fraction of all samples, not of the candidates.
        n: number of all samples.
        seed: of this choice alone; give cover samples a child of their own.
        taken: rows that are chosen already, for poison say, and must not be chosen again.

    Raises:
        ClipguardError: there are fewer candidates than that.
    """
    left = candidates if taken is None else np.setdiff1d(candidates, taken)
    count = round(rate * n)
    if count > len(left):
        kind = "poison" if taken is None else "cover"
        raise ClipguardError(
            f"{kind} rate {rate:g} asks for {count} of {n} samples but only {len(left)} can carry it: "
            "lower the rate or choose another target class"
        )
    return np.sort(seed.child("rows").numpy().choice(left, count, replace=False))


def choose_both(
    n: int, rate: float, ratio: float, seed: Seed
) -> tuple[Int64[np.ndarray, "p"], Int64[np.ndarray, "c"]]:
    """Return round(rate n) of the n rows to poison and round(ratio p) others as cover, both ascending.

    Raises:
        ClipguardError: together they are more than n.
    """
    rows = choose(np.arange(n), rate, n, seed)
    share = ratio * len(rows) / max(1, n)
    return rows, choose(np.arange(n), share, n, seed.child("cover"), rows)


def rebuilt(
    data: ImageSet,
    rows: Int64[np.ndarray, "p"],
    images: UInt8[np.ndarray, "p h w 3"],
    labels: Int64[np.ndarray, "p"],
    cover: Int64[np.ndarray, "c"] | None = None,
    cover_images: UInt8[np.ndarray, "c h w 3"] | None = None,
) -> ImageSet:
    """Return `data` with other images and labels at `rows` and, with their own labels, cover_images at `cover`.

    Raises:
        ClipguardError: a new label is no class of `data`.
    """
    k = len(data.class_names)
    if outside := sorted({int(label) for label in labels if not 0 <= label < k}):
        raise ClipguardError(f"target class {outside[0]} does not exist: choose one of 0 to {k - 1}")
    all_images, all_labels = np.array(data.images), data.labels.copy()
    all_images[rows], all_labels[rows] = images, labels
    if cover is not None and cover_images is not None:
        all_images[cover] = cover_images
    return image_set(all_images, all_labels, data.class_names, data.ids)


Cover = tuple[Int64[np.ndarray, "c"], UInt8[np.ndarray, "c h w 3"]]
"""Rows of cover samples, and their images."""


def planted(
    attack: Attack,
    data: ImageSet,
    name: str,
    rows: Int64[np.ndarray, "p"],
    images: UInt8[np.ndarray, "p h w 3"],
    cover_images: Cover | None = None,
) -> tuple[ImageSet, PoisonTruth]:
    """Return `data` with `images` at `rows`, labelled as the attack target_labels, and with cover_images; and the truth.

    Raises:
        ClipguardError: the target is no class of `data`.
    """
    k = len(data.class_names)
    labels, target_labels = attack.target_labels(data.labels[rows], k), attack.target_labels(np.arange(k), k)
    assert labels is not None
    assert target_labels is not None
    target = int(target_labels[0]) if (target_labels == target_labels[0]).all() else None
    cover, covering = cover_images or (None, None)
    return rebuilt(data, rows, images, labels, cover, covering), truth_of(data, rows, name, target, cover)


def truth_of(
    data: ImageSet,
    rows: Int64[np.ndarray, "p"],
    attack: str,
    target: int | None,
    cover: Int64[np.ndarray, "c"] | None = None,
) -> PoisonTruth:
    """Return the truth of an attack that poisoned `rows` and put a decoy on the rows `cover`."""
    poisoned, decoy = np.zeros(len(data), dtype=bool), np.zeros(len(data), dtype=bool)
    poisoned[rows] = True
    if cover is not None:
        decoy[cover] = True
    return PoisonTruth(
        poisoned=poisoned,
        cover=decoy,
        original_labels=data.labels.copy(),
        attack=attack,
        target=target,
    )
