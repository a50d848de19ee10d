"""The first line, the steps and the time left; `doctor` and `completion`."""

import itertools
import math
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from clipguard.cli import doctor, estimate
from clipguard.cli.estimate import Workload, estimated, first_line, rough_size, view_of
from clipguard.cli.opening import begin
from clipguard.cli.options import DefendOptions, ScanOptions
from clipguard.detection.net_configs import EARLY_MODELS
from clipguard.outputs.progress import Lines
from clipguard.outputs.steps import Step, Timetable, rough_range, rough_time
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.stages import STAGES
from tiny_data import image_folder

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"

WORK = Workload(n=4000, classes=10, pixels=784, view=(28, 28), guide="mini")
DEMONSTRATION = {"embeddings": 5.65, "early_model": 16.0, "trigger_detector": 13.3, "power": 31.5}
"""Seconds that stages of the demonstration took on two cores, idle or nearly so, November 2026."""


def test_every_default_net_has_a_measured_cost():
    config = DefenseConfig()
    nets = (config.early_model.architecture, config.trigger_detector.net.architecture, config.architecture)
    assert set(nets) | {net.architecture for net in EARLY_MODELS.values()} <= estimate.NET_SECONDS.keys()
    assert Workload(**as_dict(WORK)).architecture == config.architecture
    assert Workload(**as_dict(WORK)).epochs == config.victim.epochs


@pytest.mark.parametrize(("times", "slowness"), [(2.0, 2.0), (1.0, 1.0), (1e6, 4.0), (0.0, 0.25)])
def test_the_probe_is_measured_by_its_own_processor_time_and_bounded(monkeypatch, times, slowness):
    # Seconds on the clock pass by the million, as on a machine that does other things meanwhile.
    monkeypatch.setattr(estimate.time, "monotonic", itertools.count(0, 10**6).__next__)
    own = itertools.count(0, times * estimate.PROBE_SECONDS)
    monkeypatch.setattr(estimate.time, "thread_time", own.__next__)
    assert estimate.measured_slowness() == pytest.approx(slowness)


def test_every_stage_belongs_to_one_step():
    steps = estimated(Workload(**{**as_dict(WORK), "defends": True}), cores=2).steps
    stages = [stage for step in steps for stage in step.stages]
    assert sorted(stages) == sorted(stage.name for stage in STAGES)


def as_dict(work):
    return {name: getattr(work, name) for name in work.__dataclass_fields__}


@pytest.mark.parametrize(("stage", "seconds"), DEMONSTRATION.items())
def test_estimates_are_near_what_the_demonstration_took(stage, seconds):
    (step,) = (step for step in estimated(WORK, cores=2).steps if stage in step.stages)
    assert seconds / 2 < step.seconds < 2 * seconds


def test_more_cores_take_less_and_a_slower_machine_more():
    seconds = [
        estimated(WORK, cores, slowness=slow).seconds for cores, slow in ((2, 2.0), (2, 1.0), (8, 1.0))
    ]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] == pytest.approx(2 * seconds[1])
    assert len(set(seconds)) == 3


@pytest.mark.parametrize(
    ("busy", "words"), [(0.0, "about 70 s"), (1.0, "about 70 to 100 s"), (50.0, "about 70 s to 2 min")]
)
def test_the_load_of_a_moment_widens_the_range_and_multiplies_nothing(busy, words):
    done = estimated(WORK, 2, busy, device="cpu")
    assert done.seconds == estimated(WORK, 2, device="cpu").seconds
    assert done.words == words


def test_no_copies_are_no_step_and_a_repair_is_two():
    def count(**changes):
        return len(estimated(Workload(**{**as_dict(WORK), **changes}), cores=2).steps)

    assert (count(power=0), count(), count(defends=True), count(defends=True, trains=False)) == (4, 5, 7, 6)


@pytest.mark.parametrize(("device", "guide", "timed"), [("cpu", "mini", True), ("cuda", "mini", False)])
def test_of_a_gpu_no_time_is_claimed(device, guide, timed):
    done = estimated(WORK, 2, device=device)
    line = first_line(WORK, done, Path("runs/a"))
    assert (done.timed, "time not measured here" in line) == (timed, not timed)


def test_of_another_guide_no_time_is_claimed():
    work = Workload(**{**as_dict(WORK), "guide": "hf-hub:a/b"})
    assert not estimated(work, 2, device="cpu").timed


def test_of_another_architecture_no_time_is_claimed_once_it_is_trained():
    other = {**as_dict(WORK), "architecture": "resnet50"}
    assert estimated(Workload(**other), 2, device="cpu").timed
    repair = Workload(**{**other, "defends": True})
    assert not estimated(repair, 2, device="cpu").timed


def test_the_first_line_says_images_classes_time_disk_and_folder():
    work = Workload(n=800, classes=10, pixels=240_000, view=(64, 64), guide="ViT-B-32")
    line = first_line(work, estimated(work, 2, device="cpu"), Path("runs/a"))
    assert line == "800 images, 10 classes, about 5 min, 12 MB in runs/a"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.1, "about 10 s"), (44, "about 40 s"), (130, "about 2 min"), (7260, "about 2 h 01 min")],
)
def test_times_are_promised_roughly(seconds, text):
    assert rough_time(seconds) == text


@pytest.mark.parametrize(
    ("least", "most", "text"),
    [
        (30, 33, "about 30 s"),
        (40, 80, "about 40 to 80 s"),
        (80, 160, "about 80 s to 3 min"),
        (130, 260, "about 2 to 4 min"),
    ],
)
def test_ranges_name_a_unit_once(least, most, text):
    assert rough_range(least, most) == text


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 bytes"), (1234, "1.2 KB"), (12e6, "12 MB"), (3.56e9, "3.6 GB")]
)
def test_sizes_have_two_digits(count, text):
    assert rough_size(count) == text


@pytest.mark.parametrize(
    ("sizes", "view"), [([(28, 28)], (28, 28)), ([(480, 640)], (48, 64)), ([(4, 400)], (8, 64))]
)
def test_the_view_is_the_commonest_size_made_smaller(sizes, view):
    assert view_of(sizes, None) == view
    assert view_of(sizes, (16, 16)) == (16, 16)


STEPS = (Step(("one",), 10.0), Step(("two", "more"), 20.0), Step(("three",), 30.0))
TITLES = {"one": "read", "two": "train", "more": "compare", "three": "scan a copy"}


def table(*times):
    now = iter(times)
    return Timetable(STEPS, TITLES, lambda: next(now))


def test_the_place_is_that_of_the_stages_step():
    steps = table(0)
    assert [steps.place(title) for title in ("read", "compare", "scan a copy", "other")] == [
        *("step 1 of 3", "step 2 of 3", "step 3 of 3"),
        "",
    ]


def test_the_time_left_follows_the_estimate_and_then_the_pace():
    steps = table(0, 1, 20, 40)
    assert steps.left("read", 1, 100) == "about 60 s left in all"
    # The first step took 10 s more than its 10: that is half of what it says of the others.
    assert steps.left("read", 100, 100) == "about 80 s left in all"
    assert steps.left("train", 1, 2) == "about 70 s left in all"


def test_some_seconds_more_of_a_short_step_are_no_pace():
    now = iter((0, 3))
    steps = Timetable((Step(("one",), 0.1), Step(("two",), 20.0)), TITLES, lambda: next(now))
    assert steps.left("read", 1, 1) == "about 30 s left in all"


def test_a_step_that_was_there_already_says_nothing_of_the_pace():
    steps = table(0, 0.01, 0.02)
    steps.left("read", 1, 1)
    assert steps.left("train", 0, 5) == "about 50 s left in all"


def test_without_measurements_no_time_is_told_in_all():
    now = iter((0, 5, 20, 21))
    steps = Timetable(STEPS, TITLES, lambda: next(now), timed=False)
    said = [steps.left("read", 1, 2), steps.left("read", 2, 2), steps.left("train", 1, 2)]
    assert said == ["", "", ""]


def test_lines_say_step_and_time_left():
    written, now = [], iter([0, 70.0, 100.0, 101.0])
    clock = lambda: next(now)  # noqa: E731  # as short as that of the others
    lines = Lines(written.append, clock, Timetable(STEPS, TITLES, lambda: 0.0))
    lines("train", 1, 4)
    lines("train", 4, 4)
    # It had announced four parts, and does more.
    lines("train", 4, 4)
    assert written[0].startswith("clipguard: step 2 of 3: train: 1 of 4, ")
    assert written[1].startswith("clipguard: step 2 of 3: train: 4 of 4 in 1 min 40 s; about ")
    assert len(written) == 2


def test_a_beginning_opens_the_data_and_writes_one_line(tmp_path, capsys):
    source = image_folder(tmp_path / "data", n=20)
    opening = begin(source, ScanOptions(out=tmp_path / "run", guide="mini"))
    assert (len(opening.source), len(opening.estimate.steps)) == (20, 5)
    err = capsys.readouterr().err
    assert err.startswith("clipguard: 20 images, 2 classes, about ")
    assert err.count("\n") == 1
    begin(source, DefendOptions(out=tmp_path / "run", quiet=True))
    begin(tmp_path / "gone", ScanOptions(out=tmp_path / "run"))
    assert capsys.readouterr().err == ""


def test_the_first_line_needs_no_torch(tmp_path):
    source = image_folder(tmp_path / "data", n=20)
    code = (
        "import sys; from pathlib import Path\n"
        "from clipguard.cli.opening import begin; from clipguard.cli.options import ScanOptions\n"
        f"begin(Path({str(source)!r}), ScanOptions(out=Path('run')))\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count(" images, ")) == (0, 1), done.stderr


def test_doctor_says_what_there_is_and_what_data_take(clipguard, tmp_path):
    source = image_folder(tmp_path / "data", n=20)
    ran = clipguard("doctor", source, "--guide", "mini", "--device", "cpu", "--json")
    assert (ran.code, ran.json["problems"]) == (0, [])
    assert {"clipguard", "python", "torch"} <= ran.json["versions"].keys()
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    assert set(ran.json["extras"]) == extras.keys() - {"dev", "docs", "mutation"}
    assert (ran.json["guide"]["at_hand"], ran.json["device"]["name"]) == (True, "cpu")
    assert (ran.json["estimate"]["n"], ran.json["estimate"]["view"]) == (20, [16, 16])
    assert math.isfinite(ran.json["estimate"]["seconds"])
    text = clipguard("doctor", source, "--guide", "mini", "--device", "cpu").out
    assert "A scan     about " in text
    assert "Ready" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_doctor_fails_where_the_guide_would_have_to_be_fetched(clipguard, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    ran = clipguard("doctor", "--guide", "hf-hub:nobody/nothing", "--device", "cpu")
    assert ran.code == 1
    assert "Problem    the weights of guide hf-hub:nobody/nothing are not on this machine" in ran.out


def test_doctor_warns_of_a_disk_that_is_too_small(clipguard, monkeypatch, tmp_path):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    source = image_folder(tmp_path / "data", n=20)
    ran = clipguard("doctor", source, "--guide", "mini", "--device", "cpu")
    assert (ran.code, "of disk: free some" in ran.out) == (1, True)


def test_doctor_refuses_an_unknown_guide_or_data(refused, tmp_path):
    refused("doctor", "--guide", "no-such", expected=["no-such"])
    refused("doctor", tmp_path / "gone", "--guide", "mini", expected=["gone"])


def test_completion_knows_commands_and_options_and_bash_can_read_it(clipguard, tmp_path):
    ran = clipguard("completion", "--shell", "bash")
    assert (ran.code, "defend" in ran.out, "--baseline" in ran.out) == (0, True, True)
    script = tmp_path / "completion.bash"
    script.write_text(ran.out)
    subprocess.run(["bash", "-n", script], check=True)


def test_completion_is_installed_where_the_shell_looks(clipguard, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    ran = clipguard("completion", "--shell", "fish", "--install", "--json")
    assert Path(ran.json["installed"]).is_relative_to(tmp_path)
    assert Path(ran.json["installed"]).is_file()


def test_completion_asks_for_a_shell_that_it_cannot_see(clipguard, monkeypatch):
    from cyclopts.completion import detect

    def unknown():
        raise detect.ShellDetectionError

    monkeypatch.setattr(detect, "detect_shell", unknown)
    ran = clipguard("completion")
    assert (ran.code, "--shell" in ran.err) == (2, True)
