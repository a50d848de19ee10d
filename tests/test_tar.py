"""data.tar: webdataset's shards as they are, and nothing that a hostile one asks for."""

import os
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipguard.data import Failed, ImageSource
from clipguard.data.tar import list_tar
from clipguard.data.tar_index import members
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits
from tar_files import add_special, header, picture, samples, write_tar

NAMES = ["cat", "dog"]
END = bytes(1024)


def opened(path, **options) -> ImageSource:
    """Return the source in or at `path` with two class names."""
    return ImageSource.open(path, classes=NAMES, **options)


def refusal(path, **options) -> str:
    """Return the one line with which an archive is refused."""
    with pytest.raises(ClipguardError) as caught:
        opened(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_standard_librarys_archives_of_every_format_give_keys_labels_and_bytes(tmp_path, format_):
    source = opened(write_tar(tmp_path / "a.tar", samples(6), format_))
    assert (source.kind, source.labels.tolist()) == ("tar", [0, 1] * 3)
    assert source.ids == tuple(f"{row:04d}" for row in range(6))
    assert list(source.read(range(6))) == [picture(row) for row in range(6)]
    assert list(source.read(np.array([1, 4]))) == [picture(1), picture(4)]
    assert source.refused == ()


@settings(max_examples=30)
@given(
    names=st.lists(
        st.text(st.characters(exclude_characters="/.\0", codec="utf-8"), min_size=1, max_size=150)
    ),
    size=st.integers(0, 2000),
    format_=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_any_name_and_size_is_found_where_the_standard_library_finds_it(
    tmp_path_factory, names, size, format_
):
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    write_tar(path, {name: name.encode()[:1] * size for name in names}, format_)
    with tarfile.open(path) as archive:
        expected = [(info.name, info.offset_data, info.size) for info in archive]
    assert [(m.name, m.offset, m.size) for m in members(path, Limits(name_length=200))] == expected


def test_a_label_may_stand_in_json_and_other_files_are_not_read(tmp_path):
    files = {
        "d/a.jpg": picture(1, "JPEG"),
        "d/a.json": b'{"label": 1, "url": "x"}',
        "d/a.txt": b"a caption",
        "d/b.cls": b"0\n",
        "d/b.image.PNG": picture(2),
        "d/._c.png": b"AppleDouble",
    }
    source = opened(write_tar(tmp_path / "a.tar", files))
    assert source.ids == ("d/a", "d/b")
    assert source.labels.tolist() == [1, 0]
    assert list(source.read(range(2))) == [picture(1, "JPEG"), picture(2)]


def test_shards_are_read_as_one_source_by_folder_and_by_pattern(tmp_path):
    for number in range(12):
        write_tar(tmp_path / f"data-{number:03d}.tar", samples(2))
    whole = opened(tmp_path)
    assert len(whole) == 24
    assert whole.ids[:3] == ("data-000.tar/0000", "data-000.tar/0001", "data-001.tar/0000")
    part = opened(tmp_path / "data-{009..011}.tar")
    assert part.ids == whole.ids[-6:]
    assert list(part.take(np.array([1, 4])).read(range(2))) == [picture(1), picture(0)]


def test_a_pattern_with_a_missing_shard_or_an_absurd_range_is_refused(tmp_path):
    write_tar(tmp_path / "data-0.tar", samples(2))
    assert "data-1.tar" in refusal(tmp_path / "data-{0..1}.tar")
    assert "no list of shards" in refusal(tmp_path / "data-{5..1}.tar")
    assert "no list of shards" in refusal(tmp_path / "data-{0..999999999}.tar")


@pytest.mark.parametrize("names", [("train-0.tar", "val-0.tar"), ("a.tar", "b.tar"), ("0.tar", "x.parquet")])
def test_archives_that_may_not_belong_together_are_not_mixed(tmp_path, names):
    for name in names:
        write_tar(tmp_path / name, samples(2))
    assert "may not belong together" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../out.png", "leads out"),
        ("/etc/passwd.png", "leads out"),
        ("a/../../b.png", "leads out"),
    ],
)
def test_what_no_archive_should_hold_is_listed_and_the_others_are_read(tmp_path, name, reason):
    source = opened(write_tar(tmp_path / "a.tar", {**samples(4), name: b"payload"}))
    assert len(source) == 4
    (entry,) = source.refused
    assert name in entry.id
    assert reason in entry.reason


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.FIFOTYPE, "pipe"),
        (tarfile.GNUTYPE_SPARSE, "sparse"),
        (b"Z", "unknown kind"),
    ],
)
def test_links_devices_and_pipes_are_listed_and_never_followed(tmp_path, kind, reason):
    path = add_special(write_tar(tmp_path / "a.tar", samples(4)), "0009.png", kind)
    source = opened(path)
    assert len(source) == 4
    assert [(entry.id, reason in entry.reason) for entry in source.refused] == [("a.tar/0009.png", True)]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.png": b"x"}, "no label"),
        ({"a.png": b"x", "a.cls": b"\xff"}, "cannot be read: "),
        ({"a.png": b"x", "a.cls": b"-1"}, "outside its 2 class names"),
        ({"a.png": b"x", "a.cls": b"9" * 100_000}, "100000 bytes"),
        ({"a.png": b"x", "a.json": b"[" * 50_000}, "too deep"),
        ({"a.png": b"x", "a.json": b'{"label": []}'}, "no number or text"),
        ({"a.png": b"x", "a.json": b'{"label": 0.5}'}, "one integer a row"),
        ({"a.png": b"x", "a.jpg": b"y", "a.cls": b"0"}, "2 images"),
        ({"a.txt": b"x"}, "no images found"),
        ({"../a.png": b"x"}, "1 files were refused"),
    ],
)
def test_samples_without_one_image_and_one_label_are_refused(tmp_path, files, message):
    assert message in refusal(write_tar(tmp_path / "a.tar", files))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "may be cut short"),
        (b"\x1f\x8b" + bytes(600), "wrong check sum"),
        (header(b"a.png", b"77777777777\0") + END, "cut short"),
        (header(b"a.png", b"\xff" * 12) + END, "damaged number"),
        (header(b"a.png", b"\x80" + b"\xff" * 11) + END, "cut short"),
        (header(b"a.png", b"-0000000512\0") + END, "damaged number"),
        (header(b"a.png", b"0\0", checksum=b"000001\0 ") + END, "wrong check sum"),
        (header(b"a.png", b"0\0", checksum=b"9999999\0") + END, "damaged number"),
        (header(b"a.png", b"0\0"), "may be cut short"),
        (header(b"x", b"7777777\0", b"x") + bytes(4 << 20), "oversized extended header"),
        (header(b"x", b"20\0", b"x") + b"99999 path=a\n".ljust(512, b"\0") + END, "damaged pax"),
        (header(b"x", b"20\0", b"x") + b"0 path=a\n".ljust(512, b"\0") + END, "damaged pax"),
        (header(b"x", b"20\0", b"g") + b"12 path=abc\n".ljust(512, b"\0") + END, "renames"),
        (header(b"x", b"20\0", b"x") + b"11 size=-1\n".ljust(512, b"\0") + header(b"a", b"0") + END, "pax"),
        (header(b"d/", b"2000\0", b"5") + bytes(1024) + END, "folder or link with contents"),
        (header(b"d/", b"2000\0", b"\0") + bytes(1024) + END, "folder or link with contents"),
        (header(b"a.png", b"2000\0", b"1") + bytes(1024) + END, "folder or link with contents"),
        (header(b"a.png", b"0\0", b"S", more={482: b"\1"}) + END, "map beyond its header"),
        ((header(b"x", b"20\0", b"x") + b"12 path=abc\n".ljust(512, b"\0")) * 2 + END, "second extended"),
    ],
)
def test_damaged_headers_are_refused_at_their_place(tmp_path, content, message):
    (tmp_path / "a.tar").write_bytes(content)
    assert message in refusal(tmp_path / "a.tar")


def test_an_archive_cut_anywhere_is_refused_or_lists_fewer_samples_never_others(tmp_path):
    content = write_tar(tmp_path / "a.tar", samples(3)).read_bytes()
    for cut in range(0, len(content), 256):
        (tmp_path / "a.tar").write_bytes(content[:cut])
        try:
            source = opened(tmp_path / "a.tar")
        except ClipguardError:
            continue
        assert list(source.read(range(len(source)))) == [picture(row) for row in range(3)]


def test_an_image_above_the_limit_or_cut_away_later_is_listed(tmp_path):
    path = write_tar(tmp_path / "a.tar", {**samples(2), "0002.png": bytes(5000), "0002.cls": b"1"})
    source = opened(path, limits=Limits(file_bytes=4000))
    assert list(source.read(range(3)))[2] == Failed("5000 bytes, more than the limit of 4000")
    path.write_bytes(path.read_bytes()[:2048])
    assert list(source.read(range(3)))[1] == Failed("cut short")


@pytest.mark.parametrize("count", [2000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_an_archive_of_very_many_members_is_listed_whole(tmp_path, count):
    image = picture(9)
    blocks = []
    for number in range(count // 2):
        for ending, content in ((".png", image), (".cls", b"%d" % (number % 2))):
            size = f"{len(content):011o}".encode()
            blocks.append(
                header(b"%06d" % number + ending.encode(), size) + content + bytes(-len(content) % 512)
            )
    path = tmp_path / "a.tar"
    path.write_bytes(b"".join(blocks) + bytes(1024))
    source = opened(path)
    assert len(source) == len(set(source.ids)) == count // 2
    assert np.array_equal(source.labels, np.arange(count // 2) % 2)
    assert list(source.read(range(count // 2 - 2, count // 2))) == [image, image]


def test_more_entries_than_the_limit_are_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples(5))
    assert "more entries than the limit of 9" in refusal(path, limits=Limits(members=9))


def test_a_name_above_the_limit_is_listed(tmp_path):
    source = opened(write_tar(tmp_path / "a.tar", {**samples(2), "n" * 2000 + ".png": b"x"}))
    assert source.refused[0].reason == "a name of 2004 characters"
    assert len(source.refused[0].id) < 1100


def test_a_pipe_in_place_of_a_shard_is_not_waited_for(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples(2))
    source = opened(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ClipguardError, match="no regular file"):
        list(source.read(range(2)))
    with pytest.raises(ClipguardError, match="no regular file"):
        list_tar([path], tmp_path, Limits())
