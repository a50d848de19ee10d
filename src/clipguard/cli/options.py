"""The options of each command, as they are typed; their meaning is worked out where they are used.

The command line takes its help from the docstrings.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from cyclopts import Group, Parameter

from clipguard.cli.outcome import FailOn
from clipguard.lab.attack_names import ATTACK_CLASSES
from clipguard.safety.limits import Limits

if TYPE_CHECKING:
    from clipguard.data.columns import Columns

    AttackName = str
else:
    AttackName = Literal[tuple(ATTACK_CLASSES)]

T = TypeVar("T")

Json = Annotated[bool, Parameter(negative="", help="Print one JSON object and nothing else on stdout.")]
Seed = Annotated[int, Parameter(help="Seed of all randomness: the same seed and data give the same result.")]
Classes = Annotated[
    Path | None,
    Parameter(help="Class names: a .txt with one a line, or a .json list or object; default: the source's."),
]
Rows = Annotated[str | None, Parameter(help="Keep the rows FIRST:END only, such as 0:12000.")]
Device = Annotated[
    str | None,
    Parameter(
        help="cpu, cuda, cuda:N, or auto, the first GPU that works or else the processor; default: "
        "CLIPGUARD_DEVICE, else auto."
    ),
]
Threads = Annotated[
    int | None,
    Parameter(
        help="Threads that compute at once; default: OMP_NUM_THREADS, else all cores. One large training "
        "takes at most four, and no more than are idle."
    ),
]
Power = Annotated[
    int,
    Parameter(
        help="Copies of the data in which known triggers (canaries) are put, to measure what would be "
        "identified here. Each takes the scan's trainings once more. With 0, no data set is called clean."
    ),
]
Failing = Annotated[
    FailOn,
    Parameter(
        help="Which answers count as failure: undecided (exit code 3) and suspicious (1), suspicious alone, "
        "or never any. The others exit with 0. A scan that could not read every image always fails."
    ),
]
Quiet = Annotated[
    bool,
    Parameter(name=("--quiet", "-q"), negative="", help="No progress, and the result in one line."),
]
Verbose = Annotated[
    bool,
    Parameter(
        name=("--verbose", "-v"), negative="", help="Also the time of each step, and where errors arise."
    ),
]
Format = Annotated[
    tuple[str, ...],
    Parameter(
        negative="",
        show_default=False,
        help="More forms of the result, with commas between: sarif, junit and markdown are files in the run "
        "folder; github prints annotations of GitHub Actions; json is --json.",
    ),
]
Config = Annotated[
    Path | None,
    Parameter(
        help="TOML file of options by command, such as [scan] guide = 'mini'. [scan] holds for defend, too; "
        "what is typed goes before."
    ),
]
Baseline = Annotated[
    Path | None,
    Parameter(
        help="Run folder of an earlier scan by the same guide: images that it has are not embedded again, "
        "and the exit code is that of the images that it lacks."
    ),
]
Reviews = Annotated[
    Path | None,
    Parameter(
        help="Review marks saved in the page: what they keep is not flagged, what they drop is; default: "
        "reviews.json of the run folder, or of the baseline's, if there."
    ),
]
HostileInput = Annotated[Limits, Parameter(group=Group("Limits on hostile input", sort_key=1))]
Repeated = Annotated[tuple[str, ...], Parameter(negative="", show_default=False)]
Out = Annotated[Path, Parameter(name=("--out", "-o"))]
RunFolder = Annotated[Out, Parameter(help="Run folder, created if needed; the same data resume there.")]
NewFolder = Annotated[Out, Parameter(help="Folder to make; must be new or empty.")]


def unwrapped(options: type[T]) -> type[T]:
    """Return the class with one line a description, since a help page would keep the breaks of the source."""
    options.__doc__ = re.sub(r"\n {12,}", " ", options.__doc__ or "")
    return options


@Parameter(name="*")
@unwrapped
@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnOptions:
    """What every command takes that opens a table.

    Attributes:
        image_column: Column of images or their paths: of a table (Parquet, metadata.csv), array of an .npz
            file, or ending in a .tar file; default: the usual names.
        label_column: Column of the labels, or field of the .json files of a .tar file; default likewise.
        group_column: Column of groups: copies, or frames of a video. Samples of one group are never apart in
            cross-validation, nor where a model is measured on samples that it has not seen.
    """

    image_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None

    def named(self) -> "Columns":
        """Return the same for who opens the data."""
        from clipguard.data.columns import Columns

        return Columns(image=self.image_column, label=self.label_column, group=self.group_column)


@Parameter(name="*")
@unwrapped
@dataclass(frozen=True, slots=True, kw_only=True)
class ScanOptions:
    """What `scan` and `defend` share.

    Attributes:
        guide: mini (embedded), NAME or NAME/TAG of open_clip, hf-hub:ORG/NAME or local-dir:FOLDER.
        second_guide: Another guide, to check the first one: it changes no result, and where it differs is
            reported.
        template: Prompt with {} for the class name; repeat to average; default: the prompts of the guide.
        logit_scale: Use the guide's own logit scale; without it, as in some published code, its
            probabilities are nearly uniform.
        size: Pixels HxW or N at which the small nets, and a model trained here, see the images; default: the
            commonest size, at most 64.
        early_model: shallow, residual, cgd, or an architecture.
        rank_within: Rank samples among all (the default), or within their class.
        embeddings: Folder of image embeddings by the same guide, as clip-retrieval writes them.
        quality: Look for duplicates, label errors and odd images, too; they change no other result.
        engine: What reads and embeds the data: this process, or many of Ray (extra ray).
        ray_address: Of a Ray cluster; without it, Ray is started on this machine.
        workers: Processes of Ray; default: one a processor core, or one a GPU.
    """

    out: RunFolder
    guide: str = "ViT-B-32"
    second_guide: str | None = None
    template: Repeated = ()
    logit_scale: bool = True
    classes: Classes = None
    rows: Rows = None
    columns: ColumnOptions = field(default_factory=ColumnOptions)
    size: str | None = None
    early_model: str = "shallow"
    rank_within: Literal["class", "all"] = "all"
    limits: HostileInput = field(default_factory=Limits)
    embeddings: Path | None = None
    quality: bool = True
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    workers: int | None = None
    power: Power = 1
    fail_on: Failing = "undecided"
    seed: Seed = 0
    device: Device = None
    threads: Threads = None
    baseline: Baseline = None
    reviews: Reviews = None
    config: Config = None
    format: Format = ()
    quiet: Quiet = False
    verbose: Verbose = False
    json: Json = False


@Parameter(name="*")
@unwrapped
@dataclass(frozen=True, slots=True, kw_only=True)
class DefendOptions(ScanOptions):
    """What `defend` adds: the model, how it is repaired, what it is tested on.

    Attributes:
        model: Weights to repair (.safetensors); without it, a model is trained here first.
        architecture: preactresnet18-WIDTH, a timm name or package.module:factory. Needed with --model, unless
            clipguard wrote the file; without --model the default is preactresnet18-16.
        input_size: Pixels HxW or N that the model of --model takes; default: the file's, or timm's.
        mean: R,G,B that the model of --model subtracts from images in 0..1; default as above.
        std: R,G,B that it divides by after that; default as above.
        resize: How images come to that size: stretched, or by their shorter or longer side; default as above.
        crop: Share of the resized side that the centre crop keeps, such as 0.875; default as above.
        interpolation: Of the resize; default as above.
        by: Unlearn the flagged samples, or train from scratch without them.
        drop_anyway: Let --by retrain drop more than a fifth of the data, or half of a class.
        loss: Unlearning loss; cgd is the paper's.
        rate: Learning rate of the repair; default: found by a short range test.
        epochs: Of a model that is trained here; default: 25.
        flip: Mirror images at random in training; not for digits or text. clipguard does without by itself
            where class names differ in left and right only, or name the ten digits, and in the repair where
            the model takes mirrored images for others.
        onnx: Write the repaired model as model.onnx, too, as export --to onnx does (extra onnx).
        test: Labelled test set, or a folder that `clipguard attack` wrote with --test.
    """

    model: Path | None = None
    architecture: str | None = None
    input_size: str | None = None
    mean: str | None = None
    std: str | None = None
    resize: Literal["squash", "shortest", "longest"] | None = None
    crop: str | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = None
    by: Literal["unlearn", "retrain"] = "unlearn"
    drop_anyway: Annotated[bool, Parameter(negative="")] = False
    loss: Literal["unlikelihood", "cgd"] = "unlikelihood"
    rate: float | None = None
    epochs: int | None = None
    flip: bool = True
    onnx: Annotated[bool, Parameter(negative="")] = False
    test: Path | None = None


@Parameter(name="*")
@unwrapped
@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What `demo` takes."""

    out: RunFolder = Path("runs/demo")
    seed: Seed = 0
    device: Device = None
    threads: Threads = None
    power: Power = 1
    fail_on: Failing = "never"
    quiet: Quiet = False
    verbose: Verbose = False
    json: Json = False


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """What `verify` takes.

    Attributes:
        data: The data that the run was made of.
        model: The weights that were given to defend.
        guide: The guide's weights, or the folder that holds them.
    """

    data: Path | None = None
    model: Path | None = None
    guide: Path | None = None
    limits: HostileInput = field(default_factory=Limits)
    json: Json = False


@Parameter(name="*")
@unwrapped
@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorOptions:
    """What `doctor` takes: what changes the estimate, with the names that `scan` has for it.

    Attributes:
        guide: mini (embedded), NAME or NAME/TAG of open_clip, hf-hub:ORG/NAME or local-dir:FOLDER.
        size: Pixels HxW or N at which the small nets see the images; default: the commonest size, at most 64.
    """

    guide: str = "ViT-B-32"
    size: str | None = None
    rows: Rows = None
    classes: Classes = None
    columns: ColumnOptions = field(default_factory=ColumnOptions)
    power: Power = 1
    limits: HostileInput = field(default_factory=Limits)
    device: Device = None
    threads: Threads = None
    json: Json = False


@Parameter(name="*")
@unwrapped
@dataclass(frozen=True, slots=True, kw_only=True)
class AttackOptions:
    """What `attack` takes.

    Attributes:
        attack: The attack; the last three are controls without a trigger.
        rate: Fraction of all samples that are poisoned; default: the attack's own.
        target: Label that the backdoor leads to.
        mapping: Every class to --target, or each to the next one; some attacks only.
        option: A setting of the attack's own as NAME=VALUE, such as alpha=0.1; repeatable.
        cache: Folder of fitted attacks: some train a net first; default: ~/.cache/clipguard/bench.
        test: Labelled test set, to be written without and with the trigger.
        test_rows: Keep these rows FIRST:END of the test set only.
        size: Pixels HxW or N of the images written; default: the commonest size.
    """

    out: NewFolder
    attack: AttackName
    rate: float | None = None
    target: int = 0
    mapping: Literal["all-to-one", "all-to-all"] | None = None
    option: Repeated = ()
    cache: Path | None = None
    test: Path | None = None
    test_rows: str | None = None
    rows: Rows = None
    classes: Classes = None
    columns: ColumnOptions = field(default_factory=ColumnOptions)
    size: str | None = None
    seed: Seed = 0
    device: Device = None
    quiet: Quiet = False
    json: Json = False


@Parameter(name="*")
@unwrapped
@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """What `convert` takes.

    Attributes:
        source: Clean training set that the record was made from, in its order.
        test: Clean test set likewise.
    """

    source: Path
    out: NewFolder
    test: Path | None = None
    classes: Classes = None
    columns: ColumnOptions = field(default_factory=ColumnOptions)
    quiet: Quiet = False
    json: Json = False


@Parameter(name="*")
@unwrapped
@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What `bench` takes beside its file.

    Attributes:
        out: Folder of the benchmark; resumes there.
        data: Folder of data sets known by name, as NAME/train.parquet; default: ~/.cache/clipguard/data.
        download: Fetch data sets known by name that are not there.
        cache: Folder of trained models, fitted attacks and embeddings; default: ~/.cache/clipguard/bench.
        only: Compute the rows of this label only, such as none; repeat for more.
        cells: Compute only the cells whose name is like this pattern, such as *-sig-*.
    """

    out: Out
    data: Path | None = None
    download: Annotated[bool, Parameter(negative="")] = False
    cache: Path | None = None
    only: Repeated = ()
    cells: str = "*"
    device: Device = None
    json: Json = False
