"""The residual early-training model as a stage of the scan: it depends on the guide's logits."""

from dataclasses import replace

import numpy as np

from clipguard.clip.zero_shot import ClipGuide
from clipguard.detection.early_model import ResidualConfig
from clipguard.pipeline import scan
from tiny_runs import PLAN, folder_of, poisoned_set, source_of


def test_a_residual_early_model_is_trained_anew_beside_another_guide(tmp_path):
    source = source_of(poisoned_set()[0])
    recipe = replace(PLAN.suspect.recipe, epochs=1)
    plan = replace(PLAN, suspect=ResidualConfig(architecture="shallow-8", recipe=recipe))

    def scanned(template):
        guide = ClipGuide("mini", templates=(template,))
        return scan(source, guide, folder_of(tmp_path / "run", source), plan)

    once = scanned("a photo of a {}")
    assert scanned("a photo of a {}").stages["suspect"].cached
    again = scanned("a drawing of a {}")
    assert not again.stages["suspect"].cached
    assert not np.array_equal(once.entropy.early_nll, again.entropy.early_nll)
