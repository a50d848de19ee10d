"""cli.measuring: test images that cannot be read are reported before a training, and counted nowhere."""

import io

import numpy as np
import pytest
from PIL import Image

from clipguard.cli.measuring import EvaluationSet, check_test, measure
from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.inference import classifier_logits
from clipguard.data import ImageSource
from clipguard.errors import ClipguardError
from clipguard.models.spec import ModelSpec, build
from clipguard.pipeline.defender import Defender
from clipguard.seeds import Seed
from tiny_data import image_folder, tree
from tiny_runs import CONFIG, NAMES, add_trigger, poisoned_set, source_of

SPEC = ModelSpec.sized(architecture="preactresnet18-4", num_classes=3, input_size=(16, 16))


def encoded(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


class Pairs(list):
    """(image, label) pairs, as a data set object gives them."""

    classes = NAMES


def pairs(images, labels, torn):
    """Return the images as a source of encoded files, of which those at `torn` are no images."""
    rows = zip(images, labels, strict=True)
    return ImageSource.open(
        Pairs((b"torn" if row in torn else encoded(x), int(y)) for row, (x, y) in enumerate(rows))
    )


@pytest.fixture(scope="module")
def images():
    data, _ = poisoned_set(n=60, share=0.0, seed=5)
    return data


@pytest.fixture(scope="module")
def defender(tmp_path_factory):
    run = tmp_path_factory.mktemp("fit") / "run"
    return Defender(ClipGuide("mini"), run, config=CONFIG).fit(
        source_of(poisoned_set()[0]), model=build(SPEC, Seed(0)), spec=SPEC
    )


@pytest.mark.parametrize("torn", [((), ()), ((3,), ()), ((), (7, 8)), ((0, 3), (3, 59))])
def test_a_rate_counts_the_rows_that_can_be_read_with_and_without_the_trigger(defender, images, torn):
    triggered, labels = add_trigger(images.images), images.labels
    test = EvaluationSet(
        clean=pairs(images.images, labels, torn[0]),
        triggered=pairs(triggered, labels, torn[1]),
        target_mapping=np.zeros(3, np.int64),
    )
    kept = np.setdiff1d(np.arange(60), (*torn[0], *torn[1]))
    warnings = check_test(test)
    assert [text.split()[0] for text in warnings] == ([str(60 - len(kept))] if len(kept) < 60 else [])
    rates = measure(defender, test)["after"]
    plain = classifier_logits(defender.model_, images.images[kept]).argmax(1)
    attacked = classifier_logits(defender.model_, triggered[kept]).argmax(1)
    others = labels[kept] != 0
    assert (rates.n, rates.attack_n) == (len(kept), others.sum())
    assert rates.accuracy == pytest.approx((plain == labels[kept]).mean())
    assert rates.attack_success == pytest.approx((attacked[others] == 0).mean())


def test_a_test_set_of_which_too_much_is_unreadable_is_refused(images):
    with pytest.raises(ClipguardError, match="10 of 60 images"):
        check_test(EvaluationSet(clean=pairs(images.images, images.labels, range(10))))
    # Each alone would pass, and together too, but no row is left in which both can be compared.
    torn = [range(6), range(6)]
    test = EvaluationSet(
        clean=pairs(images.images, images.labels, torn[0]),
        triggered=pairs(images.images, images.labels, torn[1]),
    )
    assert check_test(test)[0].startswith("6 images")


def test_unreadable_test_images_cost_no_training(clipguard, tmp_path):
    data, test = image_folder(tmp_path / "data", n=20), image_folder(tmp_path / "test", n=20)
    for file in sorted(test.rglob("*.png"))[:4]:
        file.write_bytes(b"torn")
    before = tree(tmp_path)
    ran = clipguard("defend", data, "-o", tmp_path / "run", "--guide", "mini", "--test", test)
    # The first line says what is about to be done.
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 2)
    assert "4 of 20 images" in ran.err
    assert tree(tmp_path) == before


def test_limits_hold_for_the_test_set_too(clipguard, tmp_path):
    data, test = image_folder(tmp_path / "data", n=20), image_folder(tmp_path / "test", n=20)
    for file in test.rglob("*.png"):
        Image.open(file).resize((48, 48)).save(file)
    run = ("-o", tmp_path / "run", "--guide", "mini", "--test", test)
    ran = clipguard("defend", data, *run, "--limits.pixels", "2000")
    assert ran.code == 2
    assert "20 of 20 images" in ran.err
    assert "more than the limit of 2000" in ran.err


def test_one_unreadable_test_image_is_a_warning(clipguard, tmp_path):
    data, test = image_folder(tmp_path / "data", n=20), image_folder(tmp_path / "test", n=20)
    sorted(test.rglob("*.png"))[0].write_bytes(b"torn")
    ran = clipguard("defend", data, "-o", tmp_path / "run", "--guide", "mini", "--test", test, "--json")
    assert ran.code == 3
    assert any("1 images of the test set" in text for text in ran.json["warnings"])
