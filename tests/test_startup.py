"""Start-up: what the command line and the light modules must not import."""

import json
import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "torchvision",
    "open_clip",
    "timm",
    "pandas",
    "datasets",
    "sklearn",
    "matplotlib",
    "mlxtend",
)
LIGHT = (
    "cli",
    "types",
    "errors",
    "seeds",
    "runs",
    "outputs.report",
    "detection.entropy_map",
    "lab.ground_truth",
)


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after `code`."""
    ending = "\nimport json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + ending], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("name", ["", *LIGHT])
def test_importing_a_light_module_brings_no_heavy_package(name):
    module = f"clipguard.{name}" if name else "clipguard"
    assert not modules_after(f"import {module}") & set(HEAVY)


def test_the_check_sees_a_heavy_package_that_is_imported():
    assert "torch" in modules_after("import clipguard.models.spec")
