"""What stands below the options of each help page: examples, and the exit codes of the command."""

from typing import Final

from clipguard.cli.outcome import ERROR, EXIT_CODES

_NAMED: Final = {**EXIT_CODES, "error": ERROR}
_CODES: Final = ", ".join(f"{_NAMED[name]} {name}" for name in sorted(_NAMED, key=_NAMED.__getitem__))

VERDICT_CODES: Final = f"{_CODES}; see --fail-on"

EXAMPLES: Final = {
    "scan": (
        "clipguard scan ./images -o runs/a",
        "clipguard scan train.parquet -o runs/b --guide mini --format sarif,markdown",
        "clipguard scan ./newer -o runs/c --baseline runs/a --fail-on suspicious",
    ),
    "defend": (
        "clipguard defend ./images -o runs/a",
        "clipguard defend ./images -o runs/b --model model.safetensors --architecture resnet18",
        "clipguard defend ./images -o runs/c --by retrain",
    ),
    "demo": ("clipguard demo", "clipguard demo -o runs/demo --power 0"),
    "report": ("clipguard report runs/a",),
    "apply": (
        "clipguard apply runs/a ./images --out ./clean",
        "clipguard apply runs/a train.parquet --out ./clean --q-value 0.1",
    ),
    "export": ("clipguard export runs/a --to csv", "clipguard export runs/a --to sarif --out findings.sarif"),
    "clean": ("clipguard clean runs/a",),
    "verify": ("clipguard verify runs/a", "clipguard verify runs/a --data ./images"),
    "doctor": ("clipguard doctor", "clipguard doctor ./images --guide mini --power 0"),
    "attack": (
        "clipguard attack train.parquet -o poisoned --attack badnets --rate 0.05",
        "clipguard attack ./images -o poisoned --attack blended --test ./test --option alpha=0.1",
    ),
    "convert": ("clipguard convert record/ --source train.parquet -o converted",),
    "bench": (
        "clipguard bench table.toml -o runs/bench",
        "clipguard bench table.toml -o runs/bench --cells '*-sig-*'",
    ),
    "bench-report": ("clipguard bench-report runs/bench",),
    "guide": ("clipguard guide check mini ./images", "clipguard guide clean mini ./images -o guides/a"),
    "guide check": (
        "clipguard guide check mini ./images",
        "clipguard guide check local-dir:guides/a ./images --against ViT-B-32 --format json",
    ),
    "guide clean": (
        "clipguard guide clean local-dir:guides/a ./images -o guides/b",
        "clipguard guide clean ViT-B-32 ./images -o guides/b --method abd --leave-out runs/a",
    ),
    "completion": ("clipguard completion --shell bash", "clipguard completion --install"),
}

_OWN_CODES: Final = {
    "scan": VERDICT_CODES,
    "defend": VERDICT_CODES,
    "demo": "0 done, 2 error; with --fail-on those of scan",
    "verify": "0 all files agree, 1 one differs, 2 error",
    "guide": "those of its commands",
    "guide check": "0 nothing stands out, 1 a class stands out, 2 error, "
    "3 not assessable, or nothing stands out and some classes were not tried",
    "doctor": "0 ready, 1 something is missing, 2 error",
    "bench": "0 done, 2 error or a row that failed",
}


def epilogue(command: str) -> str:
    """Return what follows the options of a command."""
    codes = _OWN_CODES.get(command, "0 done, 2 error")
    return "\n".join(["Examples:", *(f"  {line}" for line in EXAMPLES[command]), "", f"Exit codes: {codes}."])
