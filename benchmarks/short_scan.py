"""A scan whose nets train for one epoch: every row passes every stage, for figures of memory and reading.

    python benchmarks/short_scan.py /tmp/data --guide mini --out /tmp/run

`scale.py run --short` starts it. What it flags means nothing.
"""

import argparse
import sys
from dataclasses import replace

from clipguard.cli.process import keep_freed_memory
from clipguard.clip.zero_shot import guide_from_name
from clipguard.compute.small_nets import SmallNetConfig
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.defender import Defender
from clipguard.pipeline.summary import write_summary


def short(net: SmallNetConfig) -> SmallNetConfig:
    """Return the same net, trained for one epoch of however few steps."""
    return replace(net, epochs=1, fewest_steps=0)


def short_config() -> DefenseConfig:
    """Return the default settings with short trainings and no refinement of the trigger detector."""
    usual = DefenseConfig()
    detector = replace(usual.trigger_detector, net=short(usual.trigger_detector.net), refinements=0)
    return replace(usual, early_model=short(usual.early_model), trigger_detector=detector)


def main() -> None:
    """Scan and write the summary, as the command line does."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--guide", default="mini")
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    keep_freed_memory()
    defender = Defender(guide_from_name(given.guide), given.out, config=short_config(), progress=progress)
    write_summary(defender.scan(given.data), "scan", files={})


def progress(step: str, done: int, total: int) -> None:
    """Print each step when it is done."""
    if done == total:
        print(step, done, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
