"""Rates of the model before and after a defence, for the tests of the method."""

from collections.abc import Iterator

import numpy as np

from clipguard.compute.inference import classifier_logits
from clipguard.compute.threads import training_threads
from clipguard.lab.evaluation import evaluate
from clipguard.pipeline.defender import Defender
from clipguard.runs.summary import Rates
from clipguard.types import Images, ImageSet

TARGET = 0


def rates(defender: Defender, test: ImageSet, triggered: Images) -> Iterator[Rates]:
    """Yield the rates of the model before and after."""
    assert training_threads() == 1, "results depend on the number of threads: run with OMP_NUM_THREADS=1"
    for model in (defender.before_, defender.model_):
        clean, attacked = (classifier_logits(model, images) for images in (test.images, triggered))
        yield evaluate(clean, attacked, test.labels, np.full(len(test), TARGET))
