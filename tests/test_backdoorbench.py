"""lab.backdoorbench: records become data sets, hostile ones one line; nothing in them ever runs."""

import os
import shlex
from functools import partial

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from clipguard.cli.measuring import open_test
from clipguard.data import ImageSource
from clipguard.data.decode import Decoder, read_images
from clipguard.data.writer import write_parquet
from clipguard.errors import ClipguardError
from clipguard.lab.backdoorbench import MEMORY, Record, _main, _plain, poisoned_by, read_record, triggered_by
from clipguard.lab.ground_truth import read_truth
from clipguard.models.nets import BackdoorBenchResNet
from clipguard.seeds import Seed
from clipguard.types import Preprocessing, image_set
from hostile_workers import FAULTY
from tiny_data import CommandLine, few_steps

SIDE, NAMES = 8, ("cat", "dog", "frog")
WEIGHTS = {"conv.weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(3)}


def clean_set(n=30, seed=0):
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)
    return image_set(images, np.arange(n) % len(NAMES), NAMES)


def state_of(folder, name, n, changed):
    """Write changed images (row, label, original, pixels) as PNG and return the state that a record keeps."""
    held, indicator = {}, np.zeros(n)
    for row, label, original, pixels in changed:
        place = folder / name / str(original) / f"{row}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
        # As those records do: numpy's numbers as keys, and where the image lay on another machine.
        held[np.int64(row)] = {
            "path": f"../record/far/{name}/{original}/{row}.png",
            "other_info": [label, np.int64(original)],
        }
        indicator[row] = 1
    return {
        "bd_data_container": {"save_folder_path": "../record", "data_dict": held, "save_file_format": ".png"},
        "getitem_all": True,
        "original_index_array": np.arange(n),
        "poison_indicator": indicator,
    }


def save_record(folder, train, test, **more):
    record = {
        "model_name": "preactresnet18",
        "num_classes": len(NAMES),
        "model": WEIGHTS,
        "data_path": "../data",
        "img_size": (SIDE, SIDE, 3),
        "clean_data": "cifar10",
        "bd_train": train,
        "bd_test": test,
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(record, folder / "attack_result.pt")
    return folder


def white(row):
    return np.full((SIDE, SIDE, 3), 255 - row, dtype=np.uint8)


def marked(data, target):
    """Return the changes of a test set: every image of another class than `target`, white."""
    return [(i, target, int(y), white(i)) for i, y in enumerate(data.labels) if y != target]


@pytest.fixture
def parts(tmp_path):
    """Return what a record is made of: rows 1 and 3 poisoned (one of the target class), row 4 cover."""
    train = [(1, 0, 1, white(1)), (3, 0, 0, white(3)), (4, 1, 1, white(4))]
    where, test = tmp_path / "record", marked(clean_set(12, seed=1), 0)
    sets = (("bd_train_dataset", 30, train), ("bd_test_dataset", 12, test))
    return (where, *(state_of(where, *part) for part in sets))


@pytest.fixture
def folder(parts):
    return save_record(*parts)


def in_this_process(folder, monkeypatch):
    """Read a record without the cost of a process of its own."""

    def run(command, **_):
        record = msgspec.json.encode(_plain(*command[-2:]))
        return type("Done", (), {"returncode": 0, "stdout": record, "stderr": ""})

    monkeypatch.setattr("subprocess.run", run)
    return read_record(folder, folder / "weights.safetensors")


def test_a_record_becomes_a_poisoned_set_its_truth_and_its_weights(folder, monkeypatch):
    record, clean = in_this_process(folder, monkeypatch), clean_set()
    changed, truth = poisoned_by(record, clean)
    assert np.flatnonzero(truth.poisoned).tolist() == [1, 3]
    assert np.flatnonzero(truth.cover).tolist() == [4]
    assert truth.target == 0
    assert np.array_equal(truth.original_labels, clean.labels)
    for row in range(30):
        expected = white(row) if row in (1, 3, 4) else clean.images[row]
        assert np.array_equal(changed.images[row], expected)
        assert changed.labels[row] == (0 if row == 1 else clean.labels[row])
    weights = load_file(folder / "weights.safetensors")
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)


def test_triggered_test_images_keep_their_rows_and_true_labels(folder, monkeypatch):
    record, clean = in_this_process(folder, monkeypatch), clean_set(12, seed=1)
    triggered = triggered_by(record, clean)
    assert np.array_equal(triggered.labels, clean.labels)
    for row in range(12):
        expected = clean.images[row] if clean.labels[row] == 0 else white(row)
        assert np.array_equal(triggered.images[row], expected)
    assert record.target_mapping.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("train", "poisoned", "cover", "target"),
    [
        ([(0, 0, 0), (3, 0, 0)], [0, 3], [], 0),
        ([(0, 1, 0), (1, 2, 1), (2, 0, 2), (4, 1, 1)], [0, 1, 2], [4], None),
        ([], [], [], None),
    ],
    ids=["clean-label", "all-to-all", "nothing"],
)
def test_what_keeps_its_label_is_poison_or_cover_by_what_the_others_do(
    tmp_path, monkeypatch, train, poisoned, cover, target
):
    states = [
        state_of(tmp_path, "bd_train_dataset", 30, [(*entry, white(entry[0])) for entry in train]),
        state_of(tmp_path, "bd_test_dataset", 12, []),
    ]
    record = in_this_process(save_record(tmp_path, *states), monkeypatch)
    _, truth = poisoned_by(record, clean_set())
    assert np.flatnonzero(truth.poisoned).tolist() == poisoned
    assert np.flatnonzero(truth.cover).tolist() == cover
    assert truth.target == target


@pytest.mark.parametrize("other", [clean_set(29), clean_set(31)], ids=["shorter", "longer"])
def test_another_clean_set_is_refused(folder, monkeypatch, other):
    record = in_this_process(folder, monkeypatch)
    with pytest.raises(ClipguardError, match="training set is not the one"):
        poisoned_by(record, other)


def test_a_clean_set_in_another_order_is_refused(folder, monkeypatch):
    record, clean = in_this_process(folder, monkeypatch), clean_set(12, seed=1)
    with pytest.raises(ClipguardError, match="test set is not the one"):
        triggered_by(record, clean.take(np.arange(12)[::-1].copy()))


@pytest.mark.parametrize(
    "put",
    [lambda path: None, os.mkfifo, os.mkdir, lambda path: path.write_bytes(b"no image")],
    ids=["nothing", "pipe", "folder", "text"],
)
def test_what_is_no_image_is_one_line(folder, monkeypatch, put):
    record = in_this_process(folder, monkeypatch)
    image = folder / "bd_train_dataset" / "1" / "4.png"
    image.unlink()
    put(image)
    with pytest.raises(ClipguardError, match=r"4\.png cannot be read"):
        poisoned_by(record, clean_set())


def test_an_image_that_crashes_the_decoder_is_one_line(folder, monkeypatch):
    record = in_this_process(folder, monkeypatch)
    monkeypatch.setattr("clipguard.lab.backdoorbench.Decoder", partial(Decoder, role=FAULTY))
    (folder / "bd_train_dataset" / "1" / "4.png").write_bytes(b"crash")
    with pytest.raises(ClipguardError, match=r"4\.png cannot be read \(decoder crashed \(SIGSEGV\)\)"):
        poisoned_by(record, clean_set())


def test_a_link_that_leads_out_of_the_record_is_refused(folder, monkeypatch, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (folder / "bd_train_dataset" / "1").rename(elsewhere / "1")
    (folder / "bd_train_dataset" / "1").symlink_to(elsewhere / "1")
    with pytest.raises(ClipguardError, match="names an image outside its folder"):
        in_this_process(folder, monkeypatch)


def test_a_class_that_is_sent_to_two_others_cannot_be_judged(folder, monkeypatch):
    record = in_this_process(folder, monkeypatch)
    first, *others = record.test.entries
    test = type(record.test)(12, [first._replace(label=2), *others])
    with pytest.raises(ClipguardError, match="one class to several"):
        Record(num_classes=3, size=(8, 8), train=record.train, test=test).target_mapping  # noqa: B018  # the property itself fails


@pytest.mark.parametrize("path", ["../../etc/passwd", "a/../b.png", "b.png"])
def test_a_path_that_leads_out_of_the_record_is_refused(folder, monkeypatch, path):
    state = state_of(folder, "bd_train_dataset", 30, [(1, 0, 1, white(1))])
    next(iter(state["bd_data_container"]["data_dict"].values()))["path"] = path
    save_record(folder, state, state_of(folder, "bd_test_dataset", 12, []))
    with pytest.raises(ClipguardError, match="outside its folder"):
        in_this_process(folder, monkeypatch)


class Shell:
    """Unpickled naively, this makes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


HOSTILE = {
    "a command": (lambda root: Shell(root / "owned"), "it holds posix.system, which is not read"),
    "an image object": (lambda root: Image.new("RGB", (2, 2)), "it holds PIL.Image.Image"),
    "an array of objects": (lambda root: np.array([Shell(root / "owned")]), "only plain data, arrays"),
}


@pytest.mark.parametrize(("make", "says"), HOSTILE.values(), ids=HOSTILE)
def test_nothing_but_plain_data_is_read_and_nothing_runs(folder, tmp_path, capsys, make, says):
    save_record(folder, {}, {}, extra=make(tmp_path))
    assert _main(str(folder / "attack_result.pt"), str(tmp_path / "weights")) == 1
    captured = capsys.readouterr()
    assert says in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "weights").exists()


def test_nothing_is_imported_from_the_working_folder(folder, monkeypatch, tmp_path):
    for name in ("torch", "numpy", "safetensors"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    monkeypatch.chdir(folder)
    assert read_record(folder, tmp_path / "weights").num_classes == len(NAMES)
    assert not (tmp_path / "owned").exists()


def test_a_small_file_cannot_take_all_memory(folder, tmp_path):
    huge = torch.zeros(1).expand(2 * MEMORY // 4)
    save_record(folder, {}, {}, model={"conv.weight": huge})
    assert (folder / "attack_result.pt").stat().st_size < 10_000
    with pytest.raises(ClipguardError, match="cannot be converted"):
        read_record(folder, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_a_record_that_takes_too_long_is_one_line(folder, monkeypatch, tmp_path):
    monkeypatch.setattr("clipguard.lab.backdoorbench.PATIENCE", 0.01)
    with pytest.raises(ClipguardError, match=r"takes more than 0\.01 s"):
        read_record(folder, tmp_path / "weights")


@pytest.fixture
def clipguard(capsys):
    return CommandLine(capsys)


def test_a_converted_record_is_judged_like_an_attack(clipguard, folder, tmp_path):
    for name, data in {"train": clean_set(), "test": clean_set(12, seed=1)}.items():
        write_parquet(data, tmp_path / f"{name}.parquet")
    out, sources = (
        tmp_path / "out",
        ("--source", tmp_path / "train.parquet", "--test", tmp_path / "test.parquet"),
    )
    ran = clipguard("convert", folder, *sources, "-o", out, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["counts"] == {"train": 30, "poisoned": 2, "cover": 1, "triggered": 8}
    assert read_truth(out / "truth.parquet").poisoned.sum() == 2
    assert load_file(out / "model.safetensors").keys() == WEIGHTS.keys()
    poisoned = ImageSource.open(out / "train.parquet")
    assert np.array_equal(read_images(poisoned, Preprocessing(size=(8, 8)))[0].images[4], white(4))
    test = open_test(out, poisoned, None, None)
    assert test.target_mapping.tolist() == [0, 0, 0]
    assert test.triggered is not None


@pytest.mark.parametrize("with_test", [True, False])
def test_the_printed_command_repairs_the_records_model(clipguard, parts, tmp_path, monkeypatch, with_test):
    few_steps(monkeypatch)
    with Seed(5).torch_global():
        net = BackdoorBenchResNet(len(NAMES)).eval()
    folder = save_record(*parts, model=net.state_dict())
    write_parquet(clean_set(), tmp_path / "train.parquet")
    write_parquet(clean_set(12, seed=1), tmp_path / "test.parquet")
    # A name that a shell and a terminal would both take for something else.
    out = tmp_path / "it's :x: out"
    test = ("--test", tmp_path / "test.parquet") if with_test else ()
    ran = clipguard("convert", folder, "--source", tmp_path / "train.parquet", *test, "-o", out)
    assert ran.code == 0, ran.err
    printed = shlex.split(ran.out.splitlines()[-1])
    assert printed[:2] == ["clipguard", "defend"]
    assert ("--test" in printed) == with_test
    monkeypatch.chdir(tmp_path)
    ran = clipguard(*printed[1:], "--guide", "mini", "--json")
    assert ran.code == 3, ran.err
    if with_test:
        x = torch.from_numpy(clean_set(12, seed=1).images).permute(0, 3, 1, 2) / 255
        mean, std = torch.tensor([[0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.261]])[..., None, None]
        predicted = net((x - mean) / std).argmax(1).numpy()
        assert ran.json["before"]["accuracy"] == np.mean(predicted == clean_set(12, seed=1).labels)


def test_a_model_that_is_not_known_is_named_and_nothing_guessed(clipguard, parts, tmp_path):
    folder = save_record(*parts, model_name="vgg\n19", clean_data="celeba")
    write_parquet(clean_set(), tmp_path / "train.parquet")
    ran = clipguard("convert", folder, "--source", tmp_path / "train.parquet", "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert "on celeba) is not known here: give defend --architecture, --input-size, --mean and" in ran.out
    assert "vgg\n19" not in ran.out


def test_the_net_of_the_records_has_the_names_and_the_size_of_theirs():
    net = BackdoorBenchResNet(10)
    # Of the published net: 11,171,146 weights for ten classes.
    assert sum(weight.numel() for weight in net.parameters()) == 11_171_146
    names = set(net.state_dict())
    assert {"conv1.weight", "linear.weight", "linear.bias", "layer2.0.shortcut.0.weight"} <= names
    assert {
        f"layer{n}.{i}.{part}.weight" for n in (1, 4) for i in (0, 1) for part in ("bn1", "conv2")
    } <= names
    assert "layer1.0.shortcut.0.weight" not in names
    assert not [name for name in names if name.startswith(("norm", "head", "stem"))]


def test_what_cannot_be_converted_is_one_line_and_leaves_nothing(clipguard, folder, tmp_path):
    data = tmp_path / "train.parquet"
    write_parquet(clean_set(), data)
    (folder / "attack_result.pt").write_bytes(b"no zip at all")
    for where, says in ((folder, "cannot be converted"), (tmp_path, "has no attack_result.pt")):
        ran = clipguard("convert", where, "--source", data, "-o", tmp_path / "out")
        assert (ran.code, ran.out) == (2, "")
        assert says in ran.err.splitlines()[-1]
        assert "Traceback" not in ran.err
        assert not (tmp_path / "out").exists()
