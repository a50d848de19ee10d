"""Seconds of a method by stage, where one stage follows the other."""

import time


class Laps:
    """A stopwatch: each stage lasts from the end of the one before."""

    def __init__(self) -> None:
        self.seconds = dict[str, float]()
        self._began = time.monotonic()

    def end(self, stage: str) -> None:
        """Note the seconds of a stage that ends now."""
        now = time.monotonic()
        self.seconds[stage], self._began = now - self._began, now
