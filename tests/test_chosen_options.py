"""pipeline.chosen_options, outputs.next_steps: the next command scans as this one did."""

import shlex
from dataclasses import replace

import msgspec
import pytest

from clipguard.cli.commands import app
from clipguard.cli.opening import opened_source
from clipguard.clip.zero_shot import ClipGuide, guide_from_name
from clipguard.data import Columns, ImageSource
from clipguard.detection.early_model import early_model_named
from clipguard.detection.entropy_map import EntropyMapConfig
from clipguard.outputs.next_steps import OPTIONS, next_steps
from clipguard.pipeline.chosen_options import chosen_options
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.scan import Context
from clipguard.runs import read_json
from clipguard.runs.summary import RunSummary
from clipguard.safety.limits import Limits
from tiny_data import image_folder
from tiny_report import SCAN
from tiny_runs import folder_of, silent

N = 20


@pytest.fixture
def data(tmp_path):
    folder = image_folder(tmp_path / "my data", N)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    rows = [f"{name},{name[:3]},{row // 2}" for row, name in enumerate(names)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,kind,video", *rows]))
    (tmp_path / "my names.txt").write_text("hound\nkitten\n")
    return folder


def options_of(tmp_path, source, guide=None, config=None, **more):
    context = Context(
        run=folder_of(tmp_path / "run", source),
        source=source,
        common_size=(16, 16),
        guide=guide or ClipGuide(),
        config=config or DefenseConfig(),
        progress=silent,
        quality=more.pop("quality", True),
        **more,
    )
    return chosen_options(context)


def typed_again(tmp_path, source, options):
    """Return the options of the `defend` that is proposed, as the command line understands them."""
    location = {"location": source.location}
    run = msgspec.convert(
        SCAN | {"data": SCAN["data"] | location, "run_dir": str(tmp_path / "r")}, RunSummary
    )
    manifest = {"source": {"from_path": source.opened is not None}, "options": options}
    line = next(
        step.command for step in next_steps(run, manifest, 3) if step.command.startswith("clipguard defend")
    )
    _, bound, _ = app.parse_args(shlex.split(line)[1:], print_error=False, exit_on_error=False)
    return bound.args[0], bound.args[1] if len(bound.args) > 1 else bound.kwargs["options"]


def test_what_is_as_by_default_is_not_said(tmp_path, data):
    source = ImageSource.open(data, columns=Columns(label="kind"))
    assert options_of(tmp_path, source) == {"label_column": "kind"}
    alone = ImageSource.open(data, columns=Columns(label="kind")).take(range(5))
    assert options_of(tmp_path, alone) == {}


def test_the_next_command_opens_and_scans_the_data_as_this_one_did(tmp_path, data):
    source = ImageSource.open(
        data,
        classes=tmp_path / "my names.txt",
        rows=(2, 18),
        limits=Limits(links=True, members=100, seconds=2.5),
        columns=Columns(label="kind", group="video"),
    )
    guide = guide_from_name("mini", templates=["{}", "a {}"], use_logit_scale=False)
    config = DefenseConfig(
        size=(24, 16),
        early_model=early_model_named("cgd"),
        entropy_map=EntropyMapConfig(by="class"),
        power=3,
        seed=9,
    )
    given = options_of(
        tmp_path,
        source,
        guide,
        config,
        quality=False,
        second_guide=ClipGuide("RN50", "openai"),
        embeddings_from=tmp_path / "embedded",
    )
    assert set(given) <= set(OPTIONS)
    path, options = typed_again(tmp_path, source, given)
    again = opened_source(path, options)
    assert again.fingerprint == source.fingerprint
    assert (again.limits, again.columns, again.class_names) == (
        source.limits,
        source.columns,
        source.class_names,
    )
    assert (options.guide, options.template, options.logit_scale) == ("mini", ("{}", "a {}"), False)
    assert (options.size, options.early_model, options.rank_within) == ("24x16", "cgd", "class")
    assert (options.power, options.seed, options.quality) == (3, 9, False)
    assert (options.second_guide, options.embeddings) == ("RN50/openai", tmp_path / "embedded")


@pytest.mark.parametrize("name", ["residual", "preactresnet18-8"])
def test_a_choice_of_early_model_is_named_and_others_are_left_out(tmp_path, data, name):
    source, chosen = ImageSource.open(data, columns=Columns(label="kind")), early_model_named(name)
    given = options_of(tmp_path, source, config=DefenseConfig(early_model=chosen))
    assert given["early_model"] == name
    own = DefenseConfig(early_model=replace(chosen, epochs=77))
    assert "early_model" not in options_of(tmp_path, source, config=own)


def test_a_run_writes_both_into_its_manifest(tmp_path, data, monkeypatch):
    from clipguard.pipeline import defender

    monkeypatch.setattr(defender, "scan", lambda context: context.run.retract("nothing") or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        defender.Defender("mini", tmp_path / "run").scan(
            ImageSource.open(data, columns=Columns(label="kind"), classes=["a", "b"])
        )
    manifest = read_json(tmp_path / "run/manifest.json")
    assert manifest["options"] == {"guide": "mini", "label_column": "kind", "classes": ["a", "b"]}
    assert manifest["source"]["from_path"] is True
    assert manifest["source"]["class_keys"] == ["cat", "dog"]
