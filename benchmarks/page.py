"""Measures the page of a run in Chromium: size, start, selection, with photographs in the gallery.

    python benchmarks/page.py [--samples 50000] [--flagged 1000] [--keep FOLDER]

It needs the packages of the extra `dev` and a Chromium. Of each task it prints two times in milliseconds: the
fastest of several by the clock, since other work on the machine only ever adds to it, and the median of the
processor time of the page's process, in steps of 10.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright
from sklearn.datasets import load_sample_images

from clipguard.clip.embeddings import image_file
from clipguard.outputs.report import write_report
from clipguard.runs import DescribedStage, RunFolder, SourceInfo, write_array, write_json, write_table
from clipguard.triggers.affine import AffineTrigger, write_triggers

SIDE = 64
NAMES = tuple(f"class {number}" for number in range(10))


def photographs(n: int, draw: np.random.Generator) -> np.ndarray:
    """Return n crops of two photographs, at 64 pixels, with a patch in a corner."""
    scenes = load_sample_images().images
    out = np.empty((n, SIDE, SIDE, 3), np.uint8)
    for number in range(n):
        scene = scenes[number % len(scenes)]
        top, left = (int(draw.integers(0, size - 2 * SIDE)) for size in scene.shape[:2])
        out[number] = scene[top : top + 2 * SIDE : 2, left : left + 2 * SIDE : 2]
    out[:, -5:, -5:] = 255
    return out


def make_run(path: Path, n: int, flagged: int) -> Path:
    """Write a finished run of n samples, of which some are flagged for one trigger."""
    draw = np.random.default_rng(0)
    ids = [f"train/{NAMES[i % 10]}/photograph_{i:06d}.jpg" for i in range(n)]
    info = SourceInfo(kind="folder", location="photographs", key="k", n=n, class_names=NAMES, from_path=True)
    folder = RunFolder.open(path, info, {}, seed=0)

    def names(at: Path) -> None:
        (at / "metadata").mkdir()
        write_table(at / "metadata/metadata_000000.parquet", {"image_path": ids})

    def images(at: Path) -> None:
        few = photographs(2 * flagged, draw)
        write_array(image_file(at, 0), few[np.arange(n) % len(few)])

    def triggers(at: Path) -> None:
        scale, shift = np.ones((SIDE, SIDE, 3), np.float32), np.zeros((SIDE, SIDE, 3), np.float32)
        scale[-5:, -5:], shift[-5:, -5:] = 0, 255
        write_triggers([AffineTrigger(scale=scale, shift=shift)], at)

    for name, compute in (("embeddings", names), ("images", images), ("trigger_inversion", triggers)):
        folder.stage(DescribedStage(name=name, version=1, config={}, inputs=[]), compute)
    is_flagged = np.arange(n) < flagged
    score = np.sort(draw.random(n))[::-1]
    labels = np.where(is_flagged, 3, np.arange(n) % 10)
    columns = {
        "row": np.arange(n),
        "id": ids,
        "path": ids,
        "sha256": [draw.bytes(32).hex() for _ in range(n)],
        "label": labels,
        "given_label": [NAMES[label] for label in labels],
        "predicted_label": [NAMES[i % 10] for i in range(n)],
        "guide_nll": draw.random(n) * 9,
        "early_nll": draw.random(n) * 9,
        "guide_rank": np.where(is_flagged, 1 - draw.random(n) / 5, 1 - draw.random(n)),
        "early_rank": np.where(is_flagged, 1e-6 + draw.random(n) / 5, 1 - draw.random(n)),
        "trigger_score": score,
        "poison_score": score,
        "q_value": 1 - score,
        "rank": np.arange(n) + 1,
        "status": np.where(is_flagged, "flagged", "trusted").astype(object),
        "reason": np.where(is_flagged, "trigger", "").astype(object),
        "trigger": is_flagged.astype(np.int64),
    }
    write_table(path / "samples.parquet", columns)
    finding = {"class_name": NAMES[3], "label": 3, "kind": "trigger", "flagged": flagged, "at_least": 900}
    summary = {
        "command": "scan",
        "version": "0.1.0",
        "seed": 0,
        "threads": 2,
        "device": "cpu",
        "run_dir": str(path),
        "verdict": {"answer": "suspicious", "reasons": [], "findings": [finding | {"strength": 12.0}]},
        "data": {
            "location": "photographs",
            "n": n,
            "classes": list(NAMES),
            "empty_classes": [],
            "unreadable": 0,
            "size": [SIDE, SIDE],
        },
        "guide": {"name": "mini", "scale": 20.0, "agreement": 0.8},
        "partition": {},
        "few_clean": [],
        "stages": {},
        "warnings": [],
        "files": {},
    }
    write_json(path / "summary.json", summary)
    return path


SET = (
    "const e = document.getElementById('{}'); e.value = '{}'; "
    "e.dispatchEvent(new Event('input', {{bubbles: true}}))"
)
TASKS = {
    "select a box": "document.querySelector('[data-box=\".5,0,1,.5\"]').click()",
    "remove the box": "document.getElementById('nobox').click()",
    "search": SET.format("text", "7"),
    "search nothing": SET.format("text", ""),
    "sort by the guide": SET.format("sort", "guide"),
    "sort by suspicion": SET.format("sort", "rank"),
    "open a sample": "document.querySelector('#flagged button').click()",
    "next sample": "document.getElementById('after').click()",
    "close it": "document.getElementById('close').click()",
}


def milliseconds(page: Page, script: str) -> float:
    """Return how long a script and the layout that it causes take."""
    timed = f"const t = performance.now(); {script}; document.body.offsetHeight; return performance.now() - t"
    return float(page.evaluate(f"() => {{ {timed}; }}"))


def milliseconds_until_ready(page: Page, address: str) -> float:
    page.goto(address)
    page.wait_for_selector("html[data-ready]")
    return float(page.evaluate("performance.getEntriesByName('ready')[0].startTime"))


def measure(address: str, chromium: str, repeats: int) -> dict[str, list[float]]:
    """Return the fastest time by the clock, and the median processor time, of each task."""
    clock: dict[str, list[float]] = {}
    processor: dict[str, list[float]] = {}
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        session = browser.new_browser_cdp_session()

        def spent() -> float:
            processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
            return 1000 * sum(one["cpuTime"] for one in processes if one["type"] == "renderer")

        def note(name: str, task: Callable[[], float]) -> None:
            before = spent()
            clock.setdefault(name, []).append(task())
            processor.setdefault(name, []).append(spent() - before)

        for _ in range(repeats):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            note("ready", partial(milliseconds_until_ready, page, address))
            for name, script in TASKS.items():
                note(name, partial(milliseconds, page, script))
            page.close()
        browser.close()
    return {name: [round(min(clock[name]), 1), round(statistics.median(processor[name]))] for name in clock}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--flagged", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--keep", type=Path, help="folder for the run; else it is removed")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no Chromium on this machine: install one")
    with tempfile.TemporaryDirectory() as temporary:
        page = write_report(
            make_run(options.keep or Path(temporary) / "run", options.samples, options.flagged)
        )
        report = {
            "bytes": page.stat().st_size,
            **measure(page.absolute().as_uri(), chromium, options.repeats),
        }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
