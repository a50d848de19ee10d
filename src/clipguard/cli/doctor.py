"""`doctor`: what is installed, what a run here can use, and what data would take."""

import importlib.util
import os
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clipguard import __version__
from clipguard.cli.estimate import estimated, measured_slowness, rough_size, usable_cores
from clipguard.cli.opening import opened_source, workload
from clipguard.cli.options import DoctorOptions, ScanOptions
from clipguard.cli.outcome import Outcome
from clipguard.errors import one_line
from clipguard.runs.run_folder import versions_of

if TYPE_CHECKING:
    from rich.console import Console

MISSING: Final = 1
PACKAGES: Final = ("numpy", "torch", "torchvision", "open_clip_torch", "timm", "pyarrow", "pillow")
EXTRAS: Final = {
    "demo": "mlxtend",
    "bench": "matplotlib",
    "onnx": "onnxscript",
    "quality": "cleanlab",
    "ray": "ray",
    "rivals": "art",
}
"""Packages that an extra brings: what tells whether it is installed."""


def run_doctor(source: Path | None, options: DoctorOptions) -> Outcome:
    """Return what there is; the exit code is 1 where a problem is named.

    Raises:
        ClipguardError: the source cannot be opened, or no such device computes.
    """
    cores, busy = usable_cores(options.threads)
    guide = _guide(options.guide)
    value = {
        "versions": {"clipguard": __version__, **versions_of(*PACKAGES)},
        "extras": {name: importlib.util.find_spec(package) is not None for name, package in EXTRAS.items()},
        "guide": guide,
        "device": _device(options.device),
        "cores": cores,
        "busy": round(busy, 1),
        "memory": _free_memory(),
        "disk": shutil.disk_usage(Path.cwd()).free,
        "estimate": None if source is None else _estimate(source, options, cores, busy),
    }
    value["problems"] = problems = _problems(value)
    code = MISSING if problems else 0
    return Outcome(value=value, show=partial(_show, value), as_json=options.json, code=code)


def _guide(name: str) -> dict[str, Any]:
    """Return whether the guide's weights are on this machine; nothing is fetched."""
    from clipguard.clip.loading import cached_weights
    from clipguard.clip.zero_shot import EMBEDDED, guide_from_name

    guide = guide_from_name(name)
    if name == EMBEDDED:
        return {"name": name, "at_hand": True, "weights": "inside the package"}
    path = cached_weights(guide.model, guide.pretrained)
    return {"name": name, "at_hand": path is not None, "weights": None if path is None else str(path)}


def _device(name: str | None) -> dict[str, Any]:
    from clipguard.compute.device import choose_device

    device = choose_device(name)
    return {"name": device.description, "passed_over": list(device.passed_over)}


def _free_memory() -> int | None:
    """Return the bytes that may be had, None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None
    return 1024 * free


def _estimate(path: Path, options: DoctorOptions, cores: int, busy: float) -> dict[str, Any]:
    scan = ScanOptions(
        out=Path(os.devnull),
        guide=options.guide,
        size=options.size,
        rows=options.rows,
        classes=options.classes,
        columns=options.columns,
        power=options.power,
        limits=options.limits,
        device=options.device,
        threads=options.threads,
    )
    source = opened_source(path, scan)
    work = workload(source, scan)
    estimate = estimated(work, cores, busy, options.device, measured_slowness())
    return {
        **asdict(work),
        "location": source.location,
        "seconds": round(estimate.seconds) if estimate.timed else None,
        "seconds_crowded": round(estimate.crowded * estimate.seconds) if estimate.timed else None,
        "time": estimate.words,
        "memory": round(estimate.memory),
        "disk": round(estimate.disk),
    }


def _problems(value: dict[str, Any]) -> list[str]:
    problems: list[str] = list(value["device"]["passed_over"])
    memory, disk = ((value["estimate"] or {}).get(name, 0) for name in ("memory", "disk"))
    if not value["guide"]["at_hand"]:
        problems.append(
            f"the weights of guide {value['guide']['name']} are not on this machine: the first scan "
            "downloads them; offline, give --guide mini"
        )
    if value["memory"] is not None and memory > value["memory"]:
        problems.append(f"a scan takes {rough_size(memory)} of memory: free some, or take fewer --rows")
    if disk > value["disk"]:
        problems.append(f"a run takes {rough_size(disk)} of disk: free some, or give another folder")
    return problems


def _show(value: dict[str, Any], console: "Console") -> None:
    def line(name: str, text: str) -> None:
        console.print(one_line(f"{name:10} {text}"), soft_wrap=True, markup=False)

    versions = (f"{name} {version}" for name, version in value["versions"].items() if version)
    line("Versions", ", ".join(versions))
    line("Extras", ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in value["extras"].items()))
    line("Guide", f"{value['guide']['name']}: {value['guide']['weights'] or 'not on this machine'}")
    line("Device", value["device"]["name"])
    line("Cores", f"{value['cores']} (load of the machine: {value['busy']})")
    line("Memory", "not known" if value["memory"] is None else f"{rough_size(value['memory'])} free")
    line("Disk", f"{rough_size(value['disk'])} free here")
    if value["estimate"] is not None:
        _show_estimate(value["estimate"], line)
    for problem in value["problems"]:
        line("Problem", problem)
    if not value["problems"]:
        line("Ready", "nothing is missing")


def _show_estimate(estimate: dict[str, Any], line: Any) -> None:
    line("Data", f"{estimate['n']:,} images, {estimate['classes']:,} classes in {estimate['location']}")
    memory, disk = rough_size(estimate["memory"]), rough_size(estimate["disk"])
    line("A scan", f"{estimate['time']}, {memory} of memory, {disk} of disk")
