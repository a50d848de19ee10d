"""What a scan knows before it decides: all that the verdict is computed from."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from clipguard.detection.competence import second_axis
from clipguard.detection.entropy_map import EntropyMapConfig, entropy_map, first_partition
from clipguard.detection.label_exchange import LabelExchange
from clipguard.detection.one_way_labels import OneWayLabels
from clipguard.types import Partition


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleScores:
    """Scores of n samples of k classes.

    Attributes:
        labels: as given.
        num_classes: k, empty classes included.
        guide_nll: the guide's loss of the given label, in nats.
        guide_class: the class that the guide finds likeliest.
        early_nll: the early-training model's loss of the given label, in nats.
        late_nll: the same after it has gone on learning, see `clipguard.detection.early_model.EarlyLosses`.
        probe_loss: the linear probe's loss of the given label, out of fold, in nats; 0 without an opinion.
        probe_class: the class that the linear probe finds likeliest, out of fold.
        first_round: the trigger detector's probability of a trigger after its first round, out of fold.
        trigger_score: the same after its last round.
        exchange: what label exchange says of each class.
        one_way: what one-way labels say of it.
    """

    labels: Int64[np.ndarray, "n"]
    num_classes: int
    guide_nll: Float64[np.ndarray, "n"]
    guide_class: Int64[np.ndarray, "n"]
    early_nll: Float64[np.ndarray, "n"]
    late_nll: Float64[np.ndarray, "n"]
    probe_loss: Float64[np.ndarray, "n"]
    probe_class: Int64[np.ndarray, "n"]
    first_round: Float64[np.ndarray, "n"]
    trigger_score: Float64[np.ndarray, "n"]
    exchange: LabelExchange
    one_way: OneWayLabels

    def __len__(self) -> int:
        """Return n."""
        return len(self.labels)

    @property
    def second_axis(self) -> Float64[np.ndarray, "n"] | None:
        """The linear probe's losses where the guide is weak, see `competence.second_axis`."""
        return second_axis(self.labels, self.guide_class, self.probe_loss, self.probe_class)

    def first_partition(self, config: EntropyMapConfig) -> Partition:
        """Return the partition by the entropy map alone: clean samples, and candidates in state TRIGGER."""
        entropy = entropy_map(self.guide_nll, self.early_nll)
        return first_partition(entropy, self.labels, self.num_classes, config, self.second_axis)
