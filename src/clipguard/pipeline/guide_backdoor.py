"""Whether a guide carries a backdoor of its own, on images of the user's; and its cleaning."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from clipguard.clip.cleaning.methods import Cleaning, cleaned
from clipguard.clip.cleaning.packing import write_guide
from clipguard.clip.cleaning.patterns import Inversion, Pattern, called, inverted_pattern
from clipguard.clip.cleaning.squares import best_squares
from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.lanes import in_lanes, in_turn
from clipguard.data import ImageSource
from clipguard.data.decode import read_images
from clipguard.detection.competence import ClassCompetence, class_competence
from clipguard.detection.guide_backdoor import (
    FEWEST_CLASSES,
    Disagreement,
    deviations,
    disagreement,
    outliers,
)
from clipguard.errors import ClipguardError
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet, Progress

Answer = Literal["nothing stands out", "a class stands out", "not assessable"]

FEWEST_IMAGES: Final = 20
"""Images of other classes on which a pattern is tried, at least."""

HELD_OUT: Final = 0.1
"""Share of the images that a cleaned guide is measured on and does not learn from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSettings:
    """How a guide is checked.

    Attributes:
        images: drawn from the data, at most.
        pattern_images: of these, for patterns to be made of, and as many to be tried on.
        square_images: of those that patterns are made of, for squares to be chosen by.
        most_classes: with a pattern, drawn at random; None for all.
        inversion: how patterns are made.
    """

    images: int = 1000
    pattern_images: int = 256
    square_images: int = 24
    most_classes: int | None = 20
    inversion: Inversion = field(default_factory=Inversion)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GuideCheck:
    """What a check of a guide has measured; k classes, of which a pattern was made for some.

    Attributes:
        class_names: of the data.
        images: number of images read.
        unreadable: number of drawn images that could not be read.
        competence: how well the guide reads the labels.
        different: where it differs from another guide; None without one.
        tested: the classes with a pattern.
        called: share of the tried images that the guide calls so without it.
        reached: share of the others that it calls so with it.
        deviations: of `reached`, above the median.
        stands_out: whether a class is reached much more easily than the others.
        reasons: why no answer can be given.
    """

    class_names: tuple[str, ...]
    images: int
    unreadable: int
    competence: ClassCompetence
    different: Disagreement | None
    tested: Int64[np.ndarray, "t"]
    called: Float64[np.ndarray, "t"]
    reached: Float64[np.ndarray, "t"]
    deviations: Float64[np.ndarray, "t"]
    stands_out: Bool[np.ndarray, "t"]
    reasons: tuple[str, ...]

    @property
    def answer(self) -> Answer:
        """What the patterns say."""
        if self.reasons:
            return "not assessable"
        return "a class stands out" if self.stands_out.any() else "nothing stands out"

    @property
    def complete(self) -> bool:
        """Whether each class has a pattern."""
        return len(self.tested) == len(self.class_names)


def check_guide(
    guide: ClipGuide,
    against: ClipGuide | None,
    source: ImageSource,
    settings: CheckSettings,
    seed: Seed,
    progress: Progress,
) -> GuideCheck:
    """Return how a guide reads some images of the data, and which classes small patterns reach.

    Args:
        guide: to be checked.
        against: another guide to compare it with.
        source: the data; labels may be wrong.
        settings: see there.
        seed: of all that is drawn.
        progress: of reading and of patterns.

    Raises:
        ClipguardError: images cannot be read, or a guide cannot be loaded.
    """
    data, unreadable = drawn_images(guide, source, settings.images, seed.child("images"), progress)
    classes, k = guide.class_embeddings(data.class_names), len(data.class_names)
    first = called(guide.clip, data.pixels, classes)
    different = None
    if against is not None:
        second = _called_by_other(against, source, data, settings, seed, progress)
        different = disagreement(data.labels, first, second, k)
    # A pattern needs images of other classes only.
    tested = np.arange(k)
    if settings.most_classes is not None and len(tested) > settings.most_classes:
        tested = np.sort(seed.child("tested").generator().permutation(tested)[: settings.most_classes])
    before, reached, tried = _reached(guide, data, first, tested, settings, seed, progress)
    competence = class_competence(data.labels, first, k)
    return GuideCheck(
        class_names=data.class_names,
        images=len(data),
        unreadable=unreadable,
        competence=competence,
        different=different,
        tested=tested,
        called=before,
        reached=reached,
        deviations=deviations(reached),
        stands_out=outliers(reached),
        reasons=_reasons(competence, tested, tried),
    )


def drawn_images(
    guide: ClipGuide, source: ImageSource, most: int, seed: Seed, progress: Progress
) -> tuple[ImageSet, int]:
    """Return at most so many images of the data, drawn at random, and how many of the drawn are unreadable.

    The images are as the guide's network takes them. Of a sample, what lies outside it does not count, and a
    class may have no image.

    Raises:
        ClipguardError: too many of them cannot be read.
    """
    rows = np.arange(len(source))
    if len(rows) > most:
        rows = np.sort(seed.generator().permutation(rows)[:most])
    drawn = source.take(rows)
    if not drawn.whole:
        drawn = replace(drawn, refused=())
    step = partial(progress, "read the images")
    data, unreadable = read_images(drawn, guide.clip.preprocessing.geometry, step, every_class=drawn.whole)
    return data, len(unreadable)


def _called_by_other(
    against: ClipGuide,
    source: ImageSource,
    data: ImageSet,
    settings: CheckSettings,
    seed: Seed,
    progress: Progress,
) -> Int64[np.ndarray, "n"]:
    """Return what the other guide finds likeliest in the same images, at its own size."""
    same, _ = drawn_images(against, source, settings.images, seed.child("images"), progress)
    if same.ids != data.ids:
        raise ClipguardError(f"{source.location} has changed while it was read: run again")
    return called(against.clip, same.pixels, against.class_embeddings(data.class_names))


def _reached(  # noqa: PLR0913  # what is tried, on what, with which settings
    guide: ClipGuide,
    data: ImageSet,
    likeliest: Int64[np.ndarray, "n"],
    tested: Int64[np.ndarray, "t"],
    settings: CheckSettings,
    seed: Seed,
    progress: Progress,
) -> tuple[Float64[np.ndarray, "t"], Float64[np.ndarray, "t"], Int64[np.ndarray, "t"]]:
    """Return, by class, the share called so without its pattern, that with it, and how many were tried."""
    classes = guide.class_embeddings(data.class_names)
    some = seed.child("pattern images").generator().permutation(len(data))[: 2 * settings.pattern_images]
    made_of, tried_on = np.array_split(some, 2)
    done = iter(range(1, len(tested) + 1))
    report = in_turn(lambda: progress("try a pattern a class", next(done), len(tested)))
    few = data.images[np.sort(made_of[: settings.square_images])]
    chosen = best_squares(
        guide.clip, few, classes, settings.inversion.share, partial(progress, "try squares of one colour")
    )

    def share(images: Images, target: int, pattern: Pattern) -> float:
        return float(np.mean(called(guide.clip, pattern.apply(images), classes) == target))

    def tried(target: int) -> tuple[float, float, int]:
        learned = made_of[data.labels[made_of] != target]
        others = tried_on[data.labels[tried_on] != target]
        fresh = others[likeliest[others] != target]
        hit = 0.0
        if len(learned) and len(fresh):
            stream = seed.child("pattern", target)
            made = inverted_pattern(
                guide.clip, data.images[learned], classes, target, settings.inversion, stream
            )
            # Chosen by what it was made of, so that the other half measures one pattern alone.
            best = max((made, chosen[target]), key=partial(share, data.images[learned], target))
            hit = share(data.images[fresh], target, best)
        report()
        return 1 - len(fresh) / max(1, len(others)), hit, len(fresh)

    progress("try a pattern a class", 0, len(tested))
    results: list[Any] = in_lanes([partial(tried, target) for target in tested.tolist()])
    before, reached, counts = zip(*results, strict=True)
    return np.array(before), np.array(reached), np.array(counts, np.int64)


def _reasons(
    competence: ClassCompetence, tested: Int64[np.ndarray, "t"], tried: Int64[np.ndarray, "t"]
) -> tuple[str, ...]:
    """Return why the patterns give no answer, if they give none."""
    with_images = tested[competence.n[tested] > 0]
    read, reasons = int(competence.assessable[with_images].sum()), []
    if len(tested) < FEWEST_CLASSES:
        reasons.append(f"patterns of {len(tested)} classes cannot be compared: {FEWEST_CLASSES} are needed")
    elif read < FEWEST_CLASSES:
        reasons.append(
            f"the guide reads {read} of {len(with_images)} classes better than by chance, of those with a "
            f"pattern and images: {FEWEST_CLASSES} are needed; give more images, class names in words, or "
            "more classes a pattern"
        )
    if tried.min() < FEWEST_IMAGES:
        reasons.append(f"a pattern could be tried on {tried.min()} images only: {FEWEST_IMAGES} are needed")
    return tuple(reasons)


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanedGuide:
    """What a cleaning has done.

    Attributes:
        losses: mean of each epoch.
        learned: images.
        held_out: images that were not learned from.
        before: share of these with whose labels the guide agrees; None if none is held out.
        after: the same of the cleaned guide.
        classes: number of them.
        pattern_classes: names of those that ABD made a pattern for; none with CleanCLIP.
    """

    losses: tuple[float, ...]
    learned: int
    held_out: int
    before: float | None
    after: float | None
    classes: int
    pattern_classes: tuple[str, ...]


def clean_guide(  # noqa: PLR0913  # what is cleaned, with what, how, and where it goes
    guide: ClipGuide,
    data: ImageSet,
    settings: Cleaning,
    folder: Path,
    about: dict[str, Any],
    seed: Seed,
    progress: Progress,
) -> CleanedGuide:
    """Write `folder`, which `local-dir:` loads, with a guide that was cleaned on the images.

    Args:
        guide: that may have a backdoor; it stays as it is.
        data: of the size that the guide takes, without samples that are thought poisoned.
        settings: see there.
        folder: new or empty.
        about: JSON values that go into `cleaning.json` beside what was measured.
        seed: of all that is drawn.
        progress: of the fine-tuning.

    Raises:
        ClipguardError: too few images, a training that diverges, or a guide that cannot be written.
    """
    order = seed.child("held out").generator().permutation(len(data))
    held_out, learned = np.split(order, [round(HELD_OUT * len(data))])
    step = partial(progress, f"clean the guide ({settings.method})")
    tuned = cleaned(guide, data.take(np.sort(learned)), settings, seed, step)
    kept = data.take(np.sort(held_out))
    result = CleanedGuide(
        losses=tuned.losses,
        learned=len(learned),
        held_out=len(held_out),
        before=agreement(guide, kept),
        after=agreement(guide.with_network(tuned.network), kept),
        classes=len(data.class_names),
        pattern_classes=tuple(data.class_names[label] for label in tuned.pattern_classes),
    )
    write_guide(guide.clip, tuned.network, folder, {**about, **_measured(result)})
    return result


def _measured(result: CleanedGuide) -> dict[str, Any]:
    return {
        "losses": list(result.losses),
        "learned": result.learned,
        "held_out": result.held_out,
        "agreement_before": result.before,
        "agreement_after": result.after,
        "classes": result.classes,
        "pattern_classes": list(result.pattern_classes),
    }


def agreement(guide: ClipGuide, data: ImageSet) -> float | None:
    """Return the share of the images that the guide calls as they are labelled; None without an image."""
    if not len(data):
        return None
    classes = guide.class_embeddings(data.class_names)
    return float(np.mean(called(guide.clip, data.pixels, classes) == data.labels))
