"""tools/gpu_check.py: what it says where there is nothing to check, and its checks where there is a GPU."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipguard.compute.device import CPU

TOOLS = Path(__file__).parents[1] / "tools"

# What a machine with nothing but torch and numpy lacks.
LACKING = (
    *("jaxtyping", "threadpoolctl", "filelock", "safetensors", "msgspec", "PIL", "scipy", "sklearn"),
    *("open_clip", "timm", "pyarrow", "torchvision", "huggingface_hub", "cyclopts", "rich", "jinja2"),
)
BARE = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({LACKING}))
sys.argv = ["gpu_check"]
runpy.run_path({str(TOOLS / "gpu_check.py")!r}, run_name="__main__")
"""


@pytest.mark.parametrize("command", [[str(TOOLS / "gpu_check.py")], ["-c", BARE]], ids=["whole", "bare"])
def test_without_a_gpu_the_script_says_that_it_has_checked_nothing(monkeypatch, command):
    # An empty list hides all GPUs there may be.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "NOTHING WAS CHECKED: torch sees no GPU that computes\n"


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TOOLS))
    import gpu_check

    return gpu_check


def test_its_data_are_poisoned_as_it_says(checks):
    made = checks.poisoned(400, 0.05)
    assert made.carries.sum() == 20
    assert (made.data.labels[made.carries] == checks.TARGET).all()
    assert (made.data.labels == made.clean_labels)[~made.carries].all()
    stamped = checks.stamped(made.data.images)
    assert np.array_equal(stamped[made.carries], made.data.images[made.carries])
    assert np.array_equal(stamped[:, :-6], made.data.images[:, :-6])


def test_its_area_under_the_curve_is_that_of_pairs(checks):
    assert checks.auroc(np.array([0.1, 0.9, 0.8, 0.2]), np.array([False, True, True, False])) == 1
    assert checks.auroc(np.array([0.9, 0.1, 0.8, 0.2]), np.array([False, True, True, False])) == 0.25


def test_a_check_passes_where_both_devices_are_the_processor(checks):
    assert checks.victims_on_either(CPU) == "as a kernel and as a user's module"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOTHING IS CHECKED: torch sees no GPU")
def test_all_checks_pass_on_a_gpu(checks):
    assert checks.main() == 0
