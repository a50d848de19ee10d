"""The residual early-training model as a stage of the scan: it depends on the guide's logits."""

from dataclasses import asdict, replace

import numpy as np

from clipguard.clip.zero_shot import ClipGuide
from clipguard.detection.early_model import ResidualConfig
from tiny_runs import CONFIG, poisoned_set, scanned


def test_a_residual_early_model_is_trained_anew_beside_another_guide(tmp_path):
    data, _ = poisoned_set()
    early_model = ResidualConfig(**asdict(replace(CONFIG.early_model, epochs=1)))
    config = replace(CONFIG, early_model=early_model)

    def scanned_with(template):
        return scanned(tmp_path / "run", data, config, guide=ClipGuide("mini", templates=(template,)))

    once = scanned_with("a photo of a {}")
    again = scanned_with("a photo of a {}")
    assert again.context.finished["early_model"].cached
    other = scanned_with("a drawing of a {}")
    assert not other.context.finished["early_model"].cached
    assert not np.array_equal(once.entropy.early_nll, other.entropy.early_nll)
