"""data.catalog: local folders first, archives read in place, no network unless allowed."""

import hashlib
import io
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipguard.clip.zero_shot import ClipGuide
from clipguard.data import catalog as named
from clipguard.data.catalog import NAMED, Archive, open_named
from clipguard.data.class_names import GTSRB_NAMES
from clipguard.data.decode import read_images
from clipguard.data.writer import write_parquet
from clipguard.errors import ClipguardError
from clipguard.types import Preprocessing, image_set
from tiny_data import image_folder, pictures


def offered(monkeypatch: pytest.MonkeyPatch, name: str, home: Path) -> None:
    """Let the archives of `name` be those that lie in `home`, by their real checksums."""
    known = NAMED[name]
    archives = {
        part: tuple(replace(archive, md5=md5_of(home / archive.file)) for archive in listed)
        for part, listed in known.archives.items()
    }
    monkeypatch.setitem(NAMED, name, replace(known, archives=archives))


def md5_of(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest() if file.exists() else "0" * 32


def tar(file: Path, members: dict[str, bytes]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def zipped(file: Path, members: dict[str, bytes]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def records(images: np.ndarray, *labels: np.ndarray) -> bytes:
    """Return CIFAR's binary form: label bytes, then all red, all green, all blue values."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([*(column[:, None].astype(np.uint8) for column in labels), planes], 1).tobytes()


def test_cifar_10_is_read_from_its_binary_archive_without_unpacking_it(tmp_path, monkeypatch):
    images, labels = pictures(12, size=32), np.arange(12) % 3
    folder = "cifar-10-batches-bin"
    batches = {f"{folder}/data_batch_{i + 1}.bin": slice(2 * i, 2 * i + 2) for i in range(5)}
    members = {name: records(images[rows], labels[rows]) for name, rows in batches.items()}
    members[f"{folder}/test_batch.bin"] = records(images[10:], labels[10:])
    members[f"{folder}/batches.meta.txt"] = b"airplane\nautomobile\nbird\n\n"
    home = tmp_path / "cifar10"
    tar(home / "cifar-10-binary.tar.gz", members)
    offered(monkeypatch, "cifar10", home)
    train, test = (open_named("cifar10", part, tmp_path) for part in ("train", "test"))
    assert train.class_names == ("airplane", "automobile", "bird")
    assert np.array_equal(read_images(train, Preprocessing(size=(32, 32)))[0].images, images[:10])
    assert np.array_equal(train.labels, labels[:10])
    assert np.array_equal(read_images(test, Preprocessing(size=(32, 32)))[0].images, images[10:])
    assert len(open_named("cifar10", "train", tmp_path, rows=(2, 5))) == 3
    assert [path.name for path in home.iterdir()] == ["cifar-10-binary.tar.gz"]


def test_cifar_100_has_its_fine_labels(tmp_path, monkeypatch):
    images, coarse, fine = pictures(4, size=32), np.zeros(4), np.array([0, 1, 1, 0])
    home = tmp_path / "cifar100"
    members = {
        "cifar-100-binary/train.bin": records(images, coarse, fine),
        "cifar-100-binary/fine_label_names.txt": b"aquarium_fish\nsea\n",
    }
    tar(home / "cifar-100-binary.tar.gz", members)
    offered(monkeypatch, "cifar100", home)
    source = open_named("cifar100", "train", tmp_path)
    assert source.class_names == ("aquarium fish", "sea")
    assert list(source.labels) == [0, 1, 1, 0]


def test_gtsrb_is_read_from_its_archives_with_names_in_words(tmp_path, monkeypatch):
    home, images = tmp_path / "gtsrb", pictures(4)
    zipped(
        home / "GTSRB-Training_fixed.zip",
        {f"GTSRB/Training/{label:05d}/00000_00000.ppm": encoded(images[label], "PPM") for label in (0, 1)},
    )
    zipped(
        home / "GTSRB_Final_Test_Images.zip",
        {f"GTSRB/Final_Test/Images/{row:05d}.ppm": encoded(images[row], "PPM") for row in (2, 3)},
    )
    table = "Filename;Width;ClassId\n00002.ppm;16;14\n00003.ppm;16;40\n"
    zipped(home / "GTSRB_Final_Test_GT.zip", {"GT-final_test.csv": table.encode()})
    offered(monkeypatch, "gtsrb", home)
    train, test = (open_named("gtsrb", part, tmp_path) for part in ("train", "test"))
    assert list(train.labels) == [0, 1]
    assert [test.class_names[label] for label in test.labels] == [
        "red octagon with the word STOP, stop sign",
        "blue disc with three white arrows in a circle, roundabout",
    ]
    assert np.array_equal(read_images(test, Preprocessing(size=(16, 16)))[0].images, images[2:])


def test_tiny_imagenet_has_readable_names_and_its_validation_set_for_a_test_set(tmp_path, monkeypatch):
    home, images = tmp_path / "tiny-imagenet", pictures(6)
    root = "tiny-imagenet-200"
    ids = ["n02", "n01", "n03"]
    members = {
        f"{root}/wnids.txt": "\n".join(ids).encode(),
        f"{root}/words.txt": b"n01\tcrane, bird\nn02\tcrane, machine\nn03\tgoldfish, Carassius auratus\n",
        f"{root}/val/val_annotations.txt": b"val_0.JPEG\tn03\t0\t0\nval_1.JPEG\tn01\t0\t0\n",
    }
    for row, wnid in enumerate(ids):
        members[f"{root}/train/{wnid}/images/{wnid}_0.JPEG"] = encoded(images[row], "JPEG")
    for row in (0, 1):
        members[f"{root}/val/images/val_{row}.JPEG"] = encoded(images[row], "JPEG")
    zipped(home / "tiny-imagenet-200.zip", members)
    offered(monkeypatch, "tiny-imagenet", home)
    train, test = (open_named("tiny-imagenet", part, tmp_path) for part in ("train", "test"))
    assert train.class_names == ("crane, bird", "crane, machine", "goldfish")
    assert list(train.labels) == [0, 1, 2]
    assert list(test.labels) == [2, 0]


def test_a_local_folder_serves_by_the_same_name(tmp_path):
    image_folder(tmp_path / "cifar10" / "train", 6)
    source = open_named("cifar10", "train", tmp_path)
    assert (len(source), source.class_names) == (6, ("cat", "dog"))


def test_shards_as_the_hub_lays_them_out_serve_by_the_same_name(tmp_path):
    for part, shards in (("train", 2), ("valid", 1)):
        for number in range(shards):
            data = image_set(np.full((3, 4, 4, 3), number, np.uint8), np.arange(3), ("a", "b", "c"))
            folder = tmp_path / "tiny-imagenet" / "data"
            folder.mkdir(parents=True, exist_ok=True)
            write_parquet(data, folder / f"{part}-{number:05d}-of-{shards:05d}.parquet")
    sizes = [len(open_named("tiny-imagenet", part, tmp_path)) for part in ("train", "test")]
    assert sizes == [6, 3]


def test_shards_in_several_folders_are_refused_and_odd_names_are_none(tmp_path):
    data = image_set(np.zeros((3, 4, 4, 3), np.uint8), np.arange(3), ("a", "b", "c"))
    home = tmp_path / "cifar100"
    for folder, name in (
        ("b", "train-00000-of-00001"),
        ("a", "train-00000-of-\u00b2\u00b2\u00b2\u00b2\u00b2"),
    ):
        (home / folder).mkdir(parents=True)
        write_parquet(data, home / folder / f"{name}.parquet")
    assert len(open_named("cifar100", "train", tmp_path)) == 3
    write_parquet(data, home / "a" / "test-00000-of-00001.parquet")
    with pytest.raises(ClipguardError, match="holds shards in several folders"):
        open_named("cifar100", "test", tmp_path)


def test_what_is_not_there_is_not_fetched_unless_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(named, "answers", lambda url: pytest.fail("the network was used"))
    with pytest.raises(ClipguardError, match=r"train\.parquet.*cifar-10-binary\.tar\.gz.*set download"):
        open_named("cifar10", "train", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_a_download_ends_with_the_ways_out(tmp_path):
    # The tests' own guard refuses every other machine, as a network that is down does.
    with pytest.raises(ClipguardError, match=r"does not answer; copy .* as data") as caught:
        open_named("gtsrb", "test", tmp_path, download=True)
    assert "\n" not in str(caught.value)


def test_an_archive_with_other_bytes_is_refused_and_kept(tmp_path):
    file = tmp_path / "cifar10" / "cifar-10-binary.tar.gz"
    tar(file, {"x": b"y"})
    with pytest.raises(ClipguardError, match="is not the file with MD5"):
        open_named("cifar10", "train", tmp_path, download=True)
    assert file.exists()


def test_an_archive_that_lacks_a_member_is_refused(tmp_path, monkeypatch):
    home = tmp_path / "cifar100"
    tar(home / "cifar-100-binary.tar.gz", {"x": b"y"})
    offered(monkeypatch, "cifar100", home)
    with pytest.raises(ClipguardError, match="cannot be read"):
        open_named("cifar100", "test", tmp_path)


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(ClipguardError, match="unknown data set 'imagenet'"):
        open_named("imagenet", "train", tmp_path)


def test_the_names_of_the_signs_are_43_and_mean_something_to_a_guide():
    assert len(set(GTSRB_NAMES)) == 43
    assert ClipGuide("mini").warnings_for(GTSRB_NAMES) == []


@pytest.mark.parametrize("name", NAMED)
def test_every_archive_has_a_checksum(name):
    listed = [archive for part in NAMED[name].archives.values() for archive in part]
    assert listed
    assert all(isinstance(archive, Archive) and len(archive.md5) == 32 for archive in listed)
