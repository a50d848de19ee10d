import hashlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from clipguard.clip.loading import load_clip
from clipguard.clip.zero_shot import ClipGuide, guide_from_name
from clipguard.seeds import Seed

TOOLS = Path(__file__).parents[1] / "tools"
SEED = Seed(0).child("test_mini_guide_tool")

pytest.importorskip("matplotlib", reason="matplotlib is missing: digits cannot be rendered from its fonts")


@pytest.fixture(autouse=True)
def tools_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))


@pytest.fixture
def make() -> ModuleType:
    from mini_guide import make

    return make


def colored_squares(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images that are mostly red, green or blue."""
    generator = SEED.child("squares").numpy()
    labels = np.arange(count) % 3
    images = generator.integers(0, 60, (count, 64, 64, 3))
    images[np.arange(count), :, :, labels] += 180
    return images.astype(np.uint8), labels


def test_rendered_digits_are_seeded_varied_and_readable_by_the_guide() -> None:
    from clipguard.clip.zero_shot import DIGIT_NAMES, DIGIT_TEMPLATES
    from mini_guide.digits import render_digits

    images, labels = render_digits(100, SEED)
    assert np.array_equal(images, render_digits(100, SEED)[0])
    assert not np.array_equal(images, render_digits(100, SEED.child("other"))[0])
    assert np.array_equal(np.bincount(labels), [10] * 10)
    guide = ClipGuide("mini", templates=DIGIT_TEMPLATES)
    scores = guide.logits(guide.clip.embed_images(images), DIGIT_NAMES)
    assert (scores.logits[:].argmax(1) == labels).mean() > 0.7


def test_distillation_texts_hold_nouns_definitions_digits_and_shapes() -> None:
    from mini_guide.texts import distillation_texts, imagenet_texts

    texts = distillation_texts(SEED)
    assert texts == distillation_texts(SEED)
    assert 130_000 < len(texts) < 160_000
    assert max(map(len, texts)) < 200
    assert {"goose", "a photo of a goose", "handwritten digit seven", "a photo of a red octagon"} <= set(
        texts
    )
    words, definitions = imagenet_texts()
    assert (len(words), len(definitions)) == (1000, 1000)
    assert definitions[99].startswith(f"{words[99]}:")


def test_a_text_tower_learns_its_teachers_embeddings(make: ModuleType) -> None:
    from mini_guide.dual_encoder import new_encoder
    from mini_guide.text_tower import Distillation, distil
    from mini_guide.texts import distillation_texts

    texts = distillation_texts(SEED)[::1400]
    targets = guide_from_name("mini").clip.embed_texts(texts)
    model = new_encoder(SEED)
    before = (make.embed_texts(model, texts).numpy() * targets).sum(1).mean()
    distil(model, texts, targets, Distillation(epochs=6, batch=32), SEED)
    after = (make.embed_texts(model, texts).numpy() * targets).sum(1).mean()
    assert after > before + 0.2


@pytest.mark.slow
def test_the_whole_recipe_makes_a_folder_that_tells_its_classes_apart(
    make: ModuleType, tmp_path: Path
) -> None:
    from mini_guide.digits import render_digits
    from mini_guide.dual_encoder import new_encoder, pack
    from mini_guide.image_tower import Tuning

    images, labels = colored_squares(150)
    names = ["red square", "green square", "blue square"]
    embedded = guide_from_name("mini").clip.network
    model = new_encoder(SEED)
    # Half of a recipe is tested above; a text tower that knows words makes a lesson worth learning.
    model.text.load_state_dict(embedded.text.state_dict())
    with SEED.child("parent").torch_global():
        parent = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    parent.load_state_dict(embedded.visual.trunk.state_dict(), strict=False)
    parent = parent.to(memory_format=torch.channels_last).eval()
    lesson = make.make_lesson(model, parent, images, labels, names, render_digits(40, SEED))
    how = Tuning(epochs=2, batch=25, digit_batch=7)
    losses = make.teach_images(model, parent, images, lesson, how, SEED)
    assert len(losses) == 24
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    pack(model, tmp_path / "guide")
    assert load_clip(f"local-dir:{tmp_path / 'guide'}").network.context_length == 32
    guide = guide_from_name(f"local-dir:{tmp_path / 'guide'}")
    scores = guide.logits(guide.clip.embed_images(images[:60]), names)
    assert (scores.logits[:].argmax(1) == labels[:60]).mean() > 0.9


def test_packing_the_embedded_model_again_gives_the_same_weights(tmp_path: Path) -> None:
    from mini_guide.dual_encoder import pack

    original = guide_from_name("mini").clip
    pack(original.network, tmp_path)
    before, after = load_file(original.weights), load_file(tmp_path / original.weights.name)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_parents_layers_are_renamed_by_order_and_checked_by_shape() -> None:
    from mini_guide.convert_parent import under_timm_names

    expected = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    foreign = {f"layer{index}": value for index, value in enumerate(expected.values()) if value.ndim}
    renamed = under_timm_names(foreign)
    assert renamed.keys() == expected.keys()
    assert all(torch.equal(renamed[name], expected[name]) for name in expected if expected[name].ndim)
    with pytest.raises(ValueError, match="shape"):
        under_timm_names({name: value.reshape(-1) for name, value in foreign.items()})


def test_a_parent_checkpoint_whose_hash_differs_from_its_name_is_not_read(tmp_path: Path) -> None:
    from mini_guide.convert_parent import read_checkpoint

    path = tmp_path / "efficientnet-lite0-57934424.pth"
    path.write_bytes(b"something else")
    with pytest.raises(SystemExit, match=hashlib.sha256(b"something else").hexdigest()):
        read_checkpoint(path)
