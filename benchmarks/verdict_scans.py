"""The verdict on draws whose truth is known: each is scanned as a user would scan it, and its answer kept.

    python benchmarks/verdict_scans.py LIST [PART OF A NAME]...    a list of `LISTS`
    python benchmarks/verdict_scans.py recheck     whether one-way labels change any of the answers
    python benchmarks/verdict_scans.py table

Each draw is one JSON file under benchmarks/results/verdict; a command goes on where an earlier one ended. No
threshold was chosen on the rows. CIFAR-10 rows 0-20,999 are left out: the factor of label exchange was chosen
anew after a false alarm among them. `unpoisoned` are disjoint blocks as they are, `derived` the same under a
condition, `whole` 12,000 rows of each data set. Attacks have about twice the samples of the floor of their
family on development rows.
"""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import numpy as np

from adaptive_draws import ADAPTIVE
from clipguard.data import ImageSource
from clipguard.detection.class_evidence import LABEL_ALPHA, ONE_WAY_ALPHA
from clipguard.detection.probed_labels import probed_labels
from clipguard.lab.benchmark.machine import commit, machine
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.defender import Defender
from clipguard.pipeline.stages import versions
from clipguard.seeds import Seed
from clipguard.types import chunks
from runners import CACHE, RESULTS
from verdict_draws import Draw, guide_for, made

OUT = RESULTS / "verdict"

CONDITIONS = ("long tail", "noise 0.05", "noise 0.2", "noise 0.4", "duplicates", "ids", "guide 0.5")


def blocks(data: str, number: int, size: int = 3000, start: int = 0) -> list[tuple[str, tuple[int, int]]]:
    """Return disjoint blocks of rows of a data set."""
    return [(data, (start + size * i, start + size * (i + 1))) for i in range(number)]


UNSEEN = 21_000
"""First row of CIFAR-10 that no threshold was chosen on; they end at 40,000."""


def unseen_cifar10() -> list[tuple[str, tuple[int, int]]]:
    """Return nine disjoint blocks of CIFAR-10, the last three of its test images."""
    return [*blocks("cifar10", 6, start=UNSEEN), *blocks("cifar10-test", 3)]


def unpoisoned() -> Iterator[Draw]:
    """Yield 28 disjoint blocks of 3,000 rows as they are, and 1,797 digits."""
    places = unseen_cifar10()
    for data in ("cifar100", "gtsrb", "tiny"):
        places += [*blocks(data, 4), *blocks(f"{data}-test", 1)]
    places += [*blocks("imagenette", 3), *blocks("imagenette-test", 1), ("digits", (0, 1797))]
    for number, (data, rows) in enumerate(places):
        yield Draw(data=data, rows=rows, seed=1100 + number)


def derived() -> Iterator[Draw]:
    """Yield 49 draws under seven conditions; rows repeat, noise does not."""
    places = [*unseen_cifar10()[:3], *blocks("cifar100", 2), *blocks("gtsrb", 1), *blocks("tiny", 1)]
    for number, condition in enumerate(CONDITIONS):
        for place, (data, rows) in enumerate(places):
            yield Draw(data=data, rows=rows, condition=condition, seed=2000 + 100 * number + place)


def whole() -> Iterator[Draw]:
    """Yield 12,000 rows of each data set as they are."""
    for number, data in enumerate(("cifar10", "cifar100", "gtsrb", "tiny")):
        start = UNSEEN if data == "cifar10" else 0
        yield Draw(data=data, rows=(start, start + 12_000), seed=3000 + number)


COUNTS = {
    "badnets": 120,
    "blended": 240,
    "sig": 400,
    "wanet": 500,
    "lc": 400,
    "input-aware": 500,
    "ssba": 400,
}
"""Poisoned samples of 12,000 rows of CIFAR-10, by attack; SIG and LC poison a third of their class."""


def poisoned() -> Iterator[Draw]:
    """Yield 63 draws with an attack: seven attacks, three data sets, three seeds."""
    places = {"cifar10": (UNSEEN, 2), "cifar100": (0, 7), "gtsrb": (0, 2)}
    for seed in range(3):
        for attack, count in COUNTS.items():
            for data, (start, target) in places.items():
                # A class of CIFAR-100 has 120 samples: attacks that keep labels poison a half of it.
                few = 60 if data == "cifar100" and attack in ("sig", "lc") else count
                yield Draw(
                    data=data,
                    rows=(start, start + 12_000),
                    attack=attack,
                    options={"count": few, "target": target},
                    seed=4000 + 10 * seed + target,
                    fit_seed=4000 + target,
                )


def labels() -> Iterator[Draw]:
    """Yield 20 draws in which 3 % of all samples are of one class and labelled as another."""
    places = unseen_cifar10()
    for number in range(20):
        data, rows = places[number % len(places)]
        target, apart = number % 10, 3 + 2 * (number // 10)
        options = {"count": 90, "target": target, "source": (target + apart) % 10}
        yield Draw(data=data, rows=rows, attack="one-class", options=options, seed=5000 + number)


def shortcuts() -> Iterator[Draw]:
    """Yield 10 draws in which a half of one class carries a watermark."""
    places = unseen_cifar10()
    for number in range(10):
        data, rows = places[number % len(places)]
        options = {"count": 140, "target": number}
        yield Draw(data=data, rows=rows, attack="watermark", options=options, seed=6000 + number)


def adaptive() -> Iterator[Draw]:
    """Yield four attacks by somebody who knows clipguard, on development rows."""
    for attack in ADAPTIVE:
        options = {"count": 200, "target": 2}
        yield Draw(data="cifar10", rows=(40_000, 50_000), attack=attack, options=options, seed=7000)


BEFORE = ("a1bf188", "2bb5188", "5683b3e", "7f52dae")
"""Commits of scans without one-way labels."""

EARLIER_LABEL_ALPHA = 0.0125

LISTS = {
    "adaptive": adaptive,
    "unpoisoned": unpoisoned,
    "derived": derived,
    "whole": whole,
    "poisoned": poisoned,
    "labels": labels,
    "shortcuts": shortcuts,
}


def scanned(draw: Draw, kind: str) -> None:
    """Write what a scan with default settings says of a draw, unless it is there."""
    path = OUT / kind / f"{draw.name}.json"
    if path.exists():
        return
    began = time.monotonic()
    data, truth = made(draw)
    power = (
        1 if kind in ("unpoisoned", "whole") or (kind == "derived" and draw.condition == "noise 0.05") else 0
    )
    run = CACHE / "verdict-runs" / draw.name
    defender = Defender(guide_for(draw), run, config=DefenseConfig(seed=draw.seed, power=power))
    made_in = time.monotonic() - began
    defender.scan(ImageSource.open((data.pixels, data.labels), classes=data.class_names))
    flagged, target = defender.partition_.flagged, draw.options.get("target")
    values: dict[str, Any] = {
        "draw": msgspec.to_builtins(draw),
        "verdict": msgspec.to_builtins(defender.verdict_),
        "flagged": int(flagged.sum()),
        "flagged_and_poisoned": int((flagged & truth.poisoned).sum()),
        "poisoned": int(truth.poisoned.sum()),
        "poisoned_and_clean": int((truth.poisoned & defender.partition_.clean).sum()),
        "target": None if target is None else data.class_names[target],
        "seconds": {
            "made": round(made_in, 1),
            **{k: round(s.seconds, 1) for k, s in defender.stages_.items()},
        },
        "commit": commit(),
        "machine": machine(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n")
    verdict = defender.verdict_
    found = [(one.class_name, one.kind, one.flagged, one.at_least) for one in verdict.findings]
    print(f"{draw.name}: {verdict.answer} {found} {round(time.monotonic() - began)} s", flush=True)


HEAD = (
    "draws",
    "data",
    "n",
    "clean",
    "suspicious",
    "undecided",
    "right class alone",
    "bound holds",
    "bound / truth",
)
HEAD += ("flagged", "of them poisoned", "poisoned left in clean")


def recheck() -> None:
    """Write what both tests of labels say of each draw that an earlier version has scanned.

    One-way labels came with commit c91f07e, and the level of label exchange fell from 0.0125 to 0.01. Where
    neither changes which classes are suspected, the answer is what it was: nothing else has changed.
    """
    path, version = OUT / "recheck.json", versions()["label_flow"]
    earlier = json.loads(path.read_text()) if path.exists() else {}
    known = earlier["draws"] if earlier.get("label_flow") == version else {}
    for kind, draws in LISTS.items():
        for draw in draws():
            file = OUT / kind / f"{draw.name}.json"
            if draw.name in known or not file.exists():
                continue
            before = json.loads(file.read_text())
            if before["commit"] not in BEFORE:
                continue
            data, _ = made(draw)
            images = data.pixels
            embeddings = np.concatenate(
                [guide_for(draw).clip.embed_images(images[part]) for part in chunks(len(images))]
            )
            k, seed = len(data.class_names), Seed(draw.seed).child("labels")
            _, exchange, one_way = probed_labels(embeddings, data.labels, k, seed)
            least = int(one_way.p_value.argmin())
            between = (exchange.p_value > LABEL_ALPHA) & (exchange.p_value <= EARLIER_LABEL_ALPHA)
            known[draw.name] = {
                "one_way": np.flatnonzero(one_way.p_value <= ONE_WAY_ALPHA).tolist(),
                "one_way_p_value": float(one_way.p_value[least]),
                "one_way_pair": [least, int(one_way.source[least])],
                "one_way_share": float(one_way.share[least]),
                "exchange_between_levels": np.flatnonzero(between).tolist(),
                "found": [one["label"] for one in before["verdict"]["findings"]],
            }
            values = {"label_flow": version, "commit": commit(), "machine": machine(), "draws": known}
            path.write_text(json.dumps(values, indent=1) + "\n")
            print(draw.name, known[draw.name], flush=True)


def table() -> str:
    """Return a line for each kind of draw, and attack or condition, and data set: how often what was said.

    The last four columns are medians; that of the bound is over the draws that give one for the right class.
    """
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    for kind in LISTS:
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for file in sorted((OUT / kind).glob("*.json")):
            one = json.loads(file.read_text())
            of = one["draw"]["attack"] if kind == "poisoned" else one["draw"]["condition"]
            name = kind if of == "as is" else f"{kind}: {of}"
            groups.setdefault((name, one["draw"]["data"]), []).append(one)
        lines += [_line(*names, some) for names, some in groups.items()]
    return "\n".join(lines)


def _line(name: str, data: str, results: list[dict[str, Any]]) -> str:
    answers = [one["verdict"]["answer"] for one in results]
    cells: list[object] = [name, data, len(results)]
    cells += [answers.count(answer) for answer in ("clean", "suspicious", "undecided")]
    if results[0]["target"] is None:
        cells += ["", "", "", _median(one["flagged"] for one in results), "", ""]
        return "| " + " | ".join(map(str, cells)) + " |"
    named = [{found["class_name"] for found in one["verdict"]["findings"]} for one in results]
    bounds = [
        (found["at_least"], one["poisoned"])
        for one in results
        for found in one["verdict"]["findings"]
        if found.get("at_least") is not None and found["class_name"] == one["target"]
    ]
    cells += [
        sum(names == {one["target"]} for names, one in zip(named, results, strict=True)),
        f"{sum(least <= truth for least, truth in bounds)} of {len(bounds)}",
        _median(round(least / truth, 2) for least, truth in bounds),
        *(_median(one[key] for one in results) for key in ("flagged", "flagged_and_poisoned")),
        _median(one["poisoned_and_clean"] for one in results),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def _median(values: Iterable[float]) -> str:
    known = list(values)
    return f"{float(np.median(known)):g}" if known else ""


def main() -> None:
    """Scan the draws of a list whose names hold all the words given, or print the table."""
    kind, *words = sys.argv[1:]
    if kind in ("table", "recheck"):
        print(table()) if kind == "table" else recheck()
        return
    for draw in LISTS[kind]():
        if all(word in draw.name for word in words):
            scanned(draw, kind)


if __name__ == "__main__":
    main()
