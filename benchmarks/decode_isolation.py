"""The cost of decoding in sandboxed workers: the same rows in this process and isolated, in turn.

    python benchmarks/decode_isolation.py data/cifar10/train.parquet --rows 0:12000 --rounds 3

Prints one JSON object: seconds of each round by the clock, the difference of the medians, and what share of a
guide's pass of `--pass-seconds` that is. The pixels of both are compared by their hash. Reproduces the
published cost of isolation.
"""

import argparse
import hashlib
import json
import os
import statistics
import time
from pathlib import Path

import numpy as np

from clipguard.data import ImageSource
from clipguard.data.decode import Decoder
from clipguard.safety.limits import Limits


def timed(source: ImageSource, limits: Limits) -> tuple[float, str]:
    """Return the seconds that decoding all rows takes, and the hash of the pixels."""
    digest = hashlib.sha256()
    started = time.perf_counter()
    for image in Decoder(limits).results("pixels", source.read(range(len(source)))):
        digest.update(image.tobytes() if isinstance(image, np.ndarray) else str(image).encode())
    return time.perf_counter() - started, digest.hexdigest()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--rows", default="0:12000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pass-seconds", type=float, default=45.0, help="of the guide's pass on these rows")
    given = parser.parse_args()
    first, last = (int(number) for number in given.rows.split(":"))
    source = ImageSource.open(given.source, rows=(first, last))
    seconds: dict[str, list[float]] = {"in process": [], "isolated": []}
    digests = set()
    for _ in range(given.rounds):
        # In turn, so that what else the machine does falls on both.
        for name, limits in (("in process", Limits(isolated=False)), ("isolated", Limits())):
            took, digest = timed(source, limits)
            seconds[name].append(round(took, 3))
            digests.add(digest)
    more = statistics.median(seconds["isolated"]) - statistics.median(seconds["in process"])
    report = {
        "rows": len(source),
        "seconds": seconds,
        "more_seconds": round(more, 3),
        "share_of_pass": round(more / given.pass_seconds, 4),
        "same_pixels": len(digests) == 1,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
