"""The suspicious model: trained briefly on the poisoned set, its early certainty gives poison away."""

import numpy as np
from jaxtyping import Bool

from clipguard.errors import ClipguardError
from clipguard.models import factory_of
from clipguard.probes import Probe, probe_logits
from clipguard.seeds import Seed
from clipguard.training import EpochHook, Recipe, cross_entropy
from clipguard.types import ImageSet, Scores

_REFERENCE = Recipe(
    epochs=5, batch_size=256, optimizer="adam", lr=3e-4, warmup=0.0, constant=True, crop=0.0, flip=False
)

_SHALLOW = Recipe(
    epochs=5, batch_size=64, optimizer="adam", lr=2e-3, warmup=0.0, constant=True, crop=0.0, flip=False
)

SUSPECTS: dict[str, Probe] = {
    "shallow": Probe(recipe=_SHALLOW, architecture="shallow-32", fewest_steps=300),
    "compact": Probe(recipe=_REFERENCE),
    "averaged": Probe(recipe=_REFERENCE, runs=3),
    "out-of-fold": Probe(recipe=_REFERENCE, folds=2),
    "reference": Probe(recipe=_REFERENCE, runs=3, architecture="preactresnet18-64"),
}
"""Choices by name. `shallow` is the default: a net too small to learn objects in that time learns triggers
all the sooner, in a fifth of the time. `reference` is the paper's: three runs of width 64."""


def suspect_named(text: str) -> Probe:
    """Return the choice of that name, or the reference's training with `text` as the architecture.

    Raises:
        ClipguardError: it is neither.
    """
    if text in SUSPECTS:
        return SUSPECTS[text]
    try:
        factory_of(text)
    except ClipguardError as error:
        raise ClipguardError(f"suspicious model is none of {', '.join(SUSPECTS)}; {error}") from error
    return Probe(recipe=_REFERENCE, architecture=text)


def suspect_scores(
    data: ImageSet,
    probe: Probe,
    seed: Seed,
    reserved: Bool[np.ndarray, "n"] | None = None,
    on_epoch: EpochHook | None = None,
) -> Scores:
    """Return the suspicious model's logits for every sample; reserved samples are scored but not learnt."""
    trainable = np.ones(len(data), dtype=bool) if reserved is None else ~reserved
    logits = probe_logits(
        probe, data.images, len(data.class_names), cross_entropy(data.labels), trainable, seed, on_epoch
    )
    return Scores(logits=logits, scale=1.0, source=f"suspicious model {probe.architecture}")
