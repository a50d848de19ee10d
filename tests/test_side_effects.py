"""The Python API leaves the logging and the allocator of its caller's process as they were."""

import json
import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
from safetensors.torch import save_file
from torch import zeros

from clipguard.clip import loading
from clipguard.clip.loading import CONFIG, WEIGHTS, load_clip
from clipguard.errors import ClipguardError
from hostile.weight_files import TINY


@pytest.fixture
def mini() -> str:
    return f"local-dir:{loading.__file__.rpartition('/')[0]}/mini"


@pytest.fixture
def misfit(tmp_path) -> str:
    """A folder whose config describes far more weights than there are."""
    (tmp_path / CONFIG).write_text(json.dumps({"model_cfg": TINY}))
    save_file({"w": zeros(3)}, tmp_path / WEIGHTS)
    return f"local-dir:{tmp_path}"


@contextmanager
def without_handlers() -> Iterator[logging.Logger]:
    """Give the root logger of an application that has not set up logging."""
    root = logging.getLogger()
    # Those of pytest, which a fixture would come too early for.
    before = root.handlers[:]
    root.handlers.clear()
    try:
        yield root
    finally:
        root.handlers[:] = before


def load(name: str, model: str) -> None:
    """Load the model; `misfit` is to be refused."""
    with pytest.raises(ClipguardError, match="describes") if name == "misfit" else nullcontext():
        load_clip(model)


def state() -> tuple:
    root = logging.getLogger()
    return logging.root.manager.disable, root.level, list(root.handlers), list(root.filters)


@pytest.fixture
def disabled_level() -> Iterator[int]:
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    yield logging.ERROR
    logging.disable(before)


@pytest.mark.parametrize("name", ["mini", "misfit"])
def test_loading_keeps_levels_handlers_and_filters_also_when_it_fails(request, disabled_level, name):
    before = state()
    assert before[0] == disabled_level
    load(name, request.getfixturevalue(name))
    assert state() == before


@pytest.mark.parametrize("name", ["mini", "misfit"])
def test_loading_gives_an_application_without_handlers_none(request, name):
    model = request.getfixturevalue(name)
    with without_handlers() as root:
        load(name, model)
        assert root.handlers == []
        # The control: the function that open_clip calls does give it one.
        logging.info("anything")
        assert len(root.handlers) == 1


def test_while_open_clips_warnings_are_dropped_other_threads_errors_and_loggers_pass(caplog):
    with loading._root_logger_restored(silent=True):
        logging.warning("dropped")
        logging.error("an error")
        logging.getLogger("application").warning("another logger")
        thread = threading.Thread(target=lambda: logging.warning("another thread"))
        thread.start()
        thread.join()
    logging.warning("afterwards")
    assert [record.getMessage() for record in caplog.records] == [
        "an error",
        "another logger",
        "another thread",
        "afterwards",
    ]


ALLOCATOR = """
    import os, sys
    def hook(event, arguments):
        if event == "ctypes.dlsym" and arguments[1] == "mallopt":
            os._exit(98)
    sys.addaudithook(hook)
"""

LIBRARY = """
    import numpy as np
    from clipguard.clip.zero_shot import ClipGuide
    from clipguard.compute.inference import classifier_logits
    from clipguard.compute.training import Recipe, cross_entropy, fit
    from clipguard.models.spec import ModelSpec, build
    from clipguard.seeds import Seed
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1])
    model = build(ModelSpec.sized(architecture="shallow-4", num_classes=2, input_size=(8, 8)), Seed(0))
    fit(model, images, np.arange(4), cross_entropy(labels), Recipe(epochs=1, lr=0.1), Seed(0))
    classifier_logits(model, images)
    ClipGuide("mini").clip.embed_images(images)
"""

COMMAND = """
    from clipguard.cli import main
    main(["--version"])
"""


@pytest.mark.parametrize(("code", "exit_code"), [(LIBRARY, 0), (COMMAND, 98)], ids=["library", "command"])
def test_only_the_command_line_sets_the_allocator_of_its_process(code, exit_code):
    command = [sys.executable, "-c", textwrap.dedent(ALLOCATOR) + textwrap.dedent(code)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == exit_code, ran.stderr
