"""The residual early-training model as a stage of the scan: it depends on the guide's logits."""

from dataclasses import asdict, replace

import numpy as np

from clipguard.clip.zero_shot import ClipGuide
from clipguard.detection.early_model import ResidualConfig
from tiny_runs import CONFIG, poisoned_set, scanned


def test_a_residual_early_model_is_trained_anew_beside_another_guide(tmp_path):
    data, _ = poisoned_set()
    brief = replace(CONFIG.early_model, epochs=1, architecture="shallow-8")
    config = replace(CONFIG, early_model=ResidualConfig(**asdict(brief)))

    def scan_with(template):
        guide = ClipGuide("mini", templates=(template,))
        return scanned(tmp_path / "run", data, config, guide=guide)

    once = scan_with("a photo of a {}")
    assert scan_with("a photo of a {}").context.finished["early_model"].cached
    again = scan_with("a drawing of a {}")
    assert not again.context.finished["early_model"].cached
    assert not np.array_equal(once.entropy.early_nll, again.entropy.early_nll)
