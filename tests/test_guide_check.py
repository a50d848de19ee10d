"""pipeline.guide_check: what a second guide and single prompts say, against the CLIPs asked by hand."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from clipguard.clip.loading import load_clip
from clipguard.clip.zero_shot import MINI_TEMPLATES, PHOTO_TEMPLATES, ClipGuide
from clipguard.data import ImageSource
from clipguard.errors import ClipguardError
from clipguard.pipeline.defender import Defender
from clipguard.pipeline.summary import write_summary
from clipguard.runs.summary import read_summary
from test_clip import write_model
from test_report import Page
from tiny_data import few_steps
from tiny_runs import CONFIG, GUIDE

NAMES = ("red", "green", "yellow pear")
QUICK = replace(CONFIG, power=0)


def said(clip, images, names, templates):
    """Return the class that a CLIP finds likeliest in each image, by the mean of the prompts."""
    texts = [clip.embed_texts([template.format(name) for name in names]) for template in templates]
    mean = np.mean(texts, axis=0)
    unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return (clip.embed_images(list(images)) @ unit.T).argmax(1)


@pytest.fixture(scope="module")
def mini():
    return GUIDE.clip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data(mini):
    """Return coloured images, with the labels that the embedded guide gives, but for a tenth."""
    draw, rows = np.random.default_rng(0), np.arange(180)
    images = draw.integers(0, 120, (180, 16, 16, 3)).astype(np.uint8)
    images[rows, :, :, rows % 3] += 110
    labels = said(mini, images, NAMES, MINI_TEMPLATES)
    assert len(np.unique(labels)) > 1
    labels[::10] = (labels[::10] + 1) % 3
    return images, labels


@pytest.fixture(scope="module")
def source(data):
    return ImageSource.open(data, classes=NAMES)


def second(folder):
    return ClipGuide(f"local-dir:{folder}")


def summary_of(defender):
    return write_summary(defender, "scan", files={})


@pytest.fixture(scope="module")
def without(source, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        few_steps(patch)
        return Defender(GUIDE, tmp_path_factory.mktemp("scan") / "run", config=QUICK).scan(source)


@pytest.fixture
def scanned_again(without, source, tmp_path, monkeypatch):
    """Return a scan of the same data, resumed in a copy of its run folder, with other arguments."""
    few_steps(monkeypatch)
    shutil.copytree(without.run_dir, tmp_path / "run")

    def scanned(guide=GUIDE, **given):
        return Defender(guide, tmp_path / "run", config=QUICK, **given).scan(source)

    return scanned


def differing(labels, first, other):
    """Return the classes in which the discordant samples are no fair coin, with both shares."""
    out = []
    for label, name in enumerate(NAMES):
        one, two = ((reading == label)[labels == label] for reading in (first, other))
        split = [int((one & ~two).sum()), int((two & ~one).sum())]
        if sum(split) and binomtest(split[0], sum(split), 0.5).pvalue <= 0.05 / len(NAMES):
            out.append((name, one.mean(), two.mean()))
    return out


def check(reading, labels, first, other):
    """Assert what a reading of the summary says, by the classes that both found likeliest."""
    assert reading.agreement == pytest.approx(np.mean(other == labels))
    assert reading.same == np.mean(other == first)
    said_of_classes = [(one.class_name, one.first, one.second) for one in reading.differs]
    assert said_of_classes == differing(labels, first, other)


def test_a_second_guide_is_compared_and_changes_no_result(scanned_again, without, data, mini, tiny):
    images, labels = data
    defender = scanned_again(second_guide=second(tiny))
    assert [name for name, stage in defender.stages_.items() if not stage.cached] == ["second_embeddings"]
    assert defender.partition_.fingerprint == without.partition_.fingerprint
    assert defender.verdict_ == without.verdict_
    summary = summary_of(defender)
    reading = summary.guide.second
    first, other = (
        said(clip, images, NAMES, templates)
        for clip, templates in (
            (mini, MINI_TEMPLATES),
            (load_clip(f"local-dir:{tiny}"), PHOTO_TEMPLATES),
        )
    )
    assert reading.name == f"local-dir:{tiny}"
    check(reading, labels, first, other)
    assert summary.guide.agreement == pytest.approx(0.9)
    assert reading.differs
    assert read_summary(defender.scan_.context.run.path).guide == summary.guide
    (line,) = [line for line in defender.warnings_ if line.startswith("the guides ")]
    for one in reading.differs:
        assert f"{one.class_name} ({one.first:.1%} and {one.second:.1%})" in line
    assert any("weights of guide local-dir:" in line for line in defender.warnings_)
    assert (summary_of(without).guide.second, without.scan_.second_guide) == (None, None)
    assert not [line for line in without.warnings_ if line.startswith("the guides ")]


def test_a_second_guide_is_read_back_and_another_one_is_computed(scanned_again, tiny, tmp_path):
    scanned_again(second_guide=second(tiny))
    again = scanned_again(second_guide=second(tiny))
    assert all(stage.cached for stage in again.stages_.values())
    other = scanned_again(second_guide=second(write_model(tmp_path / "other", sigmoid=True)))
    assert [name for name, stage in other.stages_.items() if not stage.cached] == ["second_embeddings"]


def test_guides_that_read_alike_raise_no_warning(scanned_again, data, mini):
    alike = scanned_again(second_guide=ClipGuide("mini", templates=MINI_TEMPLATES[:3]))
    images, labels = data
    readings = [said(mini, images, NAMES, templates) for templates in (MINI_TEMPLATES, MINI_TEMPLATES[:3])]
    assert differing(labels, *readings) == summary_of(alike).guide.second.differs == []
    assert not [line for line in alike.warnings_ if line.startswith("the guides ")]


def test_each_prompt_alone_is_compared_with_all_of_them(without, scanned_again, data, mini):
    images, labels = data
    readings = summary_of(without).guide.prompts
    assert [reading.name for reading in readings] == [*MINI_TEMPLATES]
    together = said(mini, images, NAMES, MINI_TEMPLATES)
    alone = [said(mini, images, NAMES, [template]) for template in MINI_TEMPLATES]
    for reading, other in zip(readings, alone, strict=True):
        check(reading, labels, together, other)
    assert any(reading.same < 1 for reading in readings)
    one = scanned_again(ClipGuide("mini", templates=MINI_TEMPLATES[:1]))
    assert (summary_of(one).guide.prompts, one.scan_.prompts) == ([], ())


def test_the_first_guide_is_no_second_one(source, tmp_path):
    twice = Defender(GUIDE, tmp_path / "run", config=QUICK, second_guide=ClipGuide("mini"))
    with pytest.raises(ClipguardError, match="second guide mini is the first one"):
        twice.scan(source)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def folder(data, tmp_path):
    for row, (pixels, label) in enumerate(zip(*data, strict=True)):
        (tmp_path / "data" / NAMES[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "data" / NAMES[label] / f"{row:04d}.png")
    return tmp_path / "data"


def test_images_that_change_between_the_two_passes_are_refused(folder, tmp_path, tiny):
    def progress(step, done, total):
        if step == "read the images and ask the guide" and done == total:
            last = max(folder.rglob("*.png"))
            Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(last)

    defender = Defender(GUIDE, tmp_path / "run", config=QUICK, second_guide=second(tiny), progress=progress)
    with pytest.raises(ClipguardError, match="changed since the first guide read it"):
        defender.scan(folder)
    assert not (tmp_path / "run" / "stages" / "second_embeddings").exists()


def test_the_command_line_and_the_page_say_how_the_second_guide_reads(clipguard, folder, tmp_path, tiny):
    hostile = shutil.copytree(tiny, tmp_path / "<script>alert(1)<")
    guide = f"local-dir:{hostile}"
    command = ("scan", folder, "-o", tmp_path / "run", "--guide", "mini", "--power", 0, "--fail-on", "never")
    command = (*command, "--size", 16, "--second-guide", guide, "--template", "{}", "--template", "the {}")
    ran = clipguard(*command)
    reading = read_summary(tmp_path / "run").guide.second
    assert reading.name == guide
    assert f"they say the same of {100 * reading.same:.1f} % of the images" in ran.out
    assert ran.err.count("warning: the guides mini and local-dir:") == 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Other readings of the labels" in page
    # The data of the page and its own script, and none from the name of the guide.
    assert Page(page).tags.count("script") == 2
    assert f"{100 * reading.agreement:.1f}" in Page(page).text
    assert "the {}" in Page(page).text
