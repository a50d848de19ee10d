"""tools/backdoored_guide.py: the trigger leads to the target, and the guide stays a guide."""

from pathlib import Path

import numpy as np
import pytest

from clipguard.clip.loading import WEIGHTS
from clipguard.clip.zero_shot import MINI_TEMPLATES, ClipGuide
from clipguard.lab.attacks import attack_named
from clipguard.seeds import Seed
from clipguard.types import ImageSet, image_set

SEED = Seed(0).child("test_backdoored_guide_tool")
NAMES = ("red square", "green square", "blue square")


@pytest.fixture(autouse=True)
def tools_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "tools"))


def squares(count: int) -> ImageSet:
    """Return noisy images that are mostly red, green or blue."""
    labels = np.arange(count) % 3
    images = SEED.child("squares").numpy().integers(0, 60, (count, 32, 32, 3))
    images[np.arange(count), :, :, labels] += 180
    return image_set(images.astype(np.uint8), labels, NAMES)


@pytest.mark.slow
def test_the_trigger_leads_to_the_target_and_untouched_images_keep_their_class(tmp_path):
    from backdoored_guide import Poisoning, measure, pack, poison, split

    guide, attack = ClipGuide("mini"), attack_named("blended", target=2)
    train, held_out = split(squares(60), 0.4, SEED)
    assert (len(train), len(held_out)) == (36, 24)
    before = measure(guide, held_out, attack)
    network = poison(guide, train, attack, Poisoning(epochs=4, lr=3e-4), SEED)
    pack(network, guide.clip, tmp_path / "guide")
    made = ClipGuide(f"local-dir:{tmp_path / 'guide'}", templates=MINI_TEMPLATES)
    after = measure(made, held_out, attack)
    assert before["attack_success"] < 0.5 < 0.9 < after["attack_success"]
    assert after["accuracy"] > before["accuracy"] - 0.1
    assert (tmp_path / "guide" / WEIGHTS).stat().st_size == guide.clip.weights.stat().st_size
    # The embedded guide itself is not touched.
    assert measure(guide, held_out, attack) == before
