"""What every test runs under: shapes and types are checked, nothing leaves this machine, sums repeat."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch is imported. Sums depend on the number of threads, so it is the same everywhere; and it is one,
# because threads that wait for each other on a busy machine make these tiny nets twenty times as slow.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tiny nets are trained exactly, so that all machines see the same; `behaviour` has the defaults.
os.environ.setdefault("CLIPGUARD_PRECISION", "float32")

import pytest
from hypothesis import Phase, settings
from jaxtyping import install_import_hook

# Before clipguard is imported: the hook rewrites modules as they are loaded.
install_import_hook("clipguard", "beartype.beartype")

# Machines differ in speed; a slow one must not turn a right result into a failure.
settings.register_profile("clipguard", settings.get_profile("default"), deadline=None)
# A planted fault has to be seen, not explained: shrinking an example takes longer than finding it.
settings.register_profile("mutants", deadline=None, phases=[Phase.explicit, Phase.generate])
settings.load_profile("clipguard")

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _refuse(host: object) -> None:
    if isinstance(host, bytes):
        host = host.decode()
    if host is not None and host not in LOOPBACK:
        raise ConnectionRefusedError(f"tests must not leave this machine: {host!r}")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what tests learn from the user's own cache, and the other way round."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPGUARD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Refuse look-ups of and connections to other machines, as a network that is down would."""
    connect, connect_ex, look_up = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def guarded(original: Any) -> Any:
        def to_loopback_only(self: socket.socket, address: Any) -> Any:
            if isinstance(address, tuple):  # Unix sockets have a path and stay on this machine.
                _refuse(address[0])
            return original(self, address)

        return to_loopback_only

    def look_up_loopback_only(host: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse(host)
        return look_up(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(connect))
        patch.setattr(socket.socket, "connect_ex", guarded(connect_ex))
        patch.setattr(socket, "getaddrinfo", look_up_loopback_only)
        yield


@pytest.fixture
def clipguard(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the command line, with trainings of a few steps; a file that needs another has its own."""
    # Not above: the hook comes before anything of clipguard is imported.
    from tiny_data import CommandLine, few_steps

    few_steps(monkeypatch)
    return CommandLine(capsys)


@pytest.fixture
def refused(clipguard: Any, tmp_path: Path) -> Any:
    """Return what runs a command that has to be refused in one line."""
    from tiny_data import refusing

    return refusing(clipguard, tmp_path)


@pytest.fixture(scope="session")
def poisoned_folder_and_run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a folder of poisoned images and the run folder of its scan: both are only read."""
    from tiny_runs import poisoned_folder, scanned_folder

    root = tmp_path_factory.mktemp("poisoned")
    scanned_folder(poisoned_folder(root / "data"), root / "run")
    return root / "data", root / "run"
