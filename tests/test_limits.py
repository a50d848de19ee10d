"""safety.limits: numbers that hold, files that end, JSON that fits."""

import os
from pathlib import Path

import pytest

from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits, parse_json, read_bounded


@pytest.mark.parametrize("fields", [{"pixels": 0}, {"seconds": float("nan")}, {"members": -1}])
def test_a_limit_that_nothing_could_keep_is_refused(fields):
    with pytest.raises(ClipguardError, match="give a number above 0"):
        Limits(**fields)


def test_a_file_of_exactly_the_limit_is_read_and_one_byte_more_is_not(tmp_path):
    (tmp_path / "x").write_bytes(bytes(10))
    assert read_bounded(tmp_path / "x", 10) == bytes(10)
    with pytest.raises(OSError, match="10 bytes, more than the limit of 9"):
        read_bounded(tmp_path / "x", 9)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match="no regular file"):
            read_bounded(path, 10)


def test_a_file_that_claims_to_be_empty_and_is_not_stops_at_the_limit(tmp_path):
    if not os.path.exists("/proc/self/maps"):
        pytest.skip("this system has no files of unknown length")
    (tmp_path / "maps").symlink_to("/proc/self/maps")
    with pytest.raises(OSError, match="more bytes than the limit"):
        read_bounded(tmp_path / "maps", 10)


@pytest.mark.parametrize("text", ["[" * 100_000, b"\xff", "{", "9" * 10_000, " " * 101])
def test_json_that_is_damaged_too_deep_or_too_large_is_one_kind_of_error(text):
    with pytest.raises(ValueError):
        parse_json(text, Limits(json_bytes=100) if text == " " * 101 else Limits())


def test_no_reading_leaves_a_file_open(tmp_path):
    (tmp_path / "x").write_bytes(bytes(10))
    os.mkfifo(tmp_path / "pipe")
    before = set(os.listdir("/dev/fd"))
    for path, most in ((tmp_path / "x", 10), (tmp_path / "x", 5), (tmp_path / "pipe", 5), (tmp_path, 5)):
        try:
            read_bounded(path, most)
        except OSError:
            continue
    assert len(os.listdir("/dev/fd")) == len(before)
