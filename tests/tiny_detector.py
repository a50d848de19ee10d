"""A user's own detector: a sample whose last corner is white is poisoned."""

import numpy as np

from clipguard.defenses import Case, Detected


class Corner:
    """Looks at the trigger of the tests."""

    def defend(self, case: Case) -> Detected:
        """Return how bright the corner is."""
        brightness = np.asarray(case.data.images)[:, -1, -1].mean(1).astype(float)
        return Detected(scores=brightness, flagged=brightness == 255, seconds={"look": 0.0})


make = Corner
