"""clipguard without parts of the repair that have no setting, as defences of a benchmark."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from clipguard.defenses import Case, Repaired
from clipguard.defenses.clipguard import Clipguard
from clipguard.mitigation import unlearning
from clipguard.pipeline.config import DefenseConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutClassWeights:
    """clipguard whose unlearning weights every clean sample alike."""

    config: DefenseConfig = field(default_factory=DefenseConfig)

    def defend(self, case: Case) -> Repaired:
        """Return what clipguard returns."""
        # A folder of its own: the stage's key knows nothing of the missing part.
        apart = replace(case, run_dir=case.run_dir / "no class weights")
        with _all_alike():
            return Clipguard(config=self.config).defend(apart)


class_weights = WithoutClassWeights


@contextmanager
def _all_alike() -> Iterator[None]:
    usual = unlearning.class_weights
    unlearning.class_weights = lambda clean, kept, labels, clean_share: np.ones(len(clean_share))
    try:
        yield
    finally:
        unlearning.class_weights = usual
