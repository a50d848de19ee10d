"""The options of each command, as they are typed; what they mean is worked out where they are used."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from clipguard.lab.attack_names import ATTACK_CLASSES
from clipguard.safety.limits import Limits

if TYPE_CHECKING:
    AttackName = str
else:
    AttackName = Literal[tuple(ATTACK_CLASSES)]

Json = Annotated[bool, Parameter(negative="", help="Print one JSON object and nothing else on stdout.")]
Seed = Annotated[int, Parameter(help="Root of all randomness.")]
Classes = Annotated[
    Path | None,
    Parameter(help="Class names: a .txt with one a line, or a .json list or object; default: the source's."),
]
Rows = Annotated[str | None, Parameter(help="Keep the rows FIRST:END only, such as 0:12000.")]
RunFolder = Annotated[
    Path,
    Parameter(name=("--out", "-o"), help="Run folder, created if needed; the same data resume there."),
]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class ScanOptions:
    """What `scan` and `defend` share."""

    out: RunFolder
    guide: Annotated[
        str,
        Parameter(
            help="mini (embedded), NAME or NAME/TAG of open_clip, hf-hub:ORG/NAME or local-dir:FOLDER."
        ),
    ] = "ViT-B-32"
    template: Annotated[
        tuple[str, ...],
        Parameter(
            negative="", show_default=False, help="Prompt with {} for the class name; repeat to average."
        ),
    ] = ()
    logit_scale: Annotated[
        bool, Parameter(help="Use the guide's own logit scale; without it its opinion is nearly uniform.")
    ] = True
    classes: Classes = None
    rows: Rows = None
    size: Annotated[
        str | None,
        Parameter(
            help="Pixels HxW or N at which the small nets, and a model trained here, see the images; "
            "default: the commonest size, at most 64."
        ),
    ] = None
    suspect: Annotated[
        str,
        Parameter(help="shallow, residual, compact, averaged, out-of-fold, reference, or an architecture."),
    ] = "shallow"
    split_by: Annotated[
        Literal["class", "all"], Parameter(help="Rank samples among all (reference), or within their class.")
    ] = "all"
    limits: Annotated[Limits, Parameter(group=Group("Limits on hostile input"))] = field(
        default_factory=Limits
    )
    seed: Seed = 0
    json: Json = False


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class DefendOptions(ScanOptions):
    """What `defend` adds: the model, how it is cured, what it is tested on."""

    model: Annotated[
        Path | None,
        Parameter(help="Weights to cure (.safetensors); without it, a model is trained here first."),
    ] = None
    architecture: Annotated[
        str | None,
        Parameter(
            help="preactresnet18-WIDTH, a timm name or package.module:factory; default: preactresnet18-16."
        ),
    ] = None
    input_size: Annotated[str | None, Parameter(help="Pixels HxW or N that the model of --model takes.")] = (
        None
    )
    mean: Annotated[
        str | None, Parameter(help="R,G,B that the model of --model subtracts from images in 0..1.")
    ] = None
    std: Annotated[str | None, Parameter(help="R,G,B that it divides by after that.")] = None
    by: Annotated[
        Literal["unlearn", "retrain"],
        Parameter(help="Make the model forget, or drop what is flagged and train from scratch."),
    ] = "unlearn"
    loss: Annotated[
        Literal["unlikelihood", "reference"], Parameter(help="Unlearning loss; reference is the paper's.")
    ] = "unlikelihood"
    epochs: Annotated[int | None, Parameter(help="Of a model that is trained here; default: 25.")] = None
    flip: Annotated[bool, Parameter(help="Mirror images at random in training; not for digits or text.")] = (
        True
    )
    test: Annotated[
        Path | None,
        Parameter(help="Labelled test set, or a folder that `clipguard attack` wrote with --test."),
    ] = None


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class AttackOptions:
    """What `attack` takes."""

    out: Annotated[Path, Parameter(name=("--out", "-o"), help="Folder to make; must be new or empty.")]
    attack: Annotated[
        AttackName,
        Parameter(help="The attack; the last three are controls without a trigger."),
    ]
    rate: Annotated[
        float | None,
        Parameter(help="Fraction of all samples that are poisoned; default: the attack's own."),
    ] = None
    target: Annotated[int, Parameter(help="Label that the backdoor leads to.")] = 0
    mapping: Annotated[
        Literal["all-to-one", "all-to-all"] | None,
        Parameter(help="Every class to --target, or each to the next one: badnets, blended, wanet, bpp."),
    ] = None
    option: Annotated[
        tuple[str, ...],
        Parameter(
            negative="",
            show_default=False,
            help="A setting of the attack's own as NAME=VALUE, such as alpha=0.1; repeatable.",
        ),
    ] = ()
    cache: Annotated[
        Path | None,
        Parameter(help="Folder of what attacks learn before they poison; default: ~/.cache/clipguard/bench."),
    ] = None
    test: Annotated[
        Path | None, Parameter(help="Labelled test set, to be written without and with the trigger.")
    ] = None
    test_rows: Annotated[str | None, Parameter(help="Keep these rows FIRST:END of the test set only.")] = None
    rows: Rows = None
    classes: Classes = None
    size: Annotated[
        str | None, Parameter(help="Pixels HxW or N of the images written; default: the commonest size.")
    ] = None
    seed: Seed = 0
    json: Json = False


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """What `convert` takes."""

    source: Annotated[Path, Parameter(help="Clean training set that the record was made from, in its order.")]
    out: Annotated[Path, Parameter(name=("--out", "-o"), help="Folder to make; must be new or empty.")]
    test: Annotated[Path | None, Parameter(help="Clean test set likewise.")] = None
    classes: Classes = None
    json: Json = False


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What `bench` takes beside its file."""

    out: Annotated[Path, Parameter(name=("--out", "-o"), help="Folder of the benchmark; resumes there.")]
    data: Annotated[
        Path | None,
        Parameter(
            help="Folder of data sets known by name, as NAME/train.parquet; default: ~/.cache/clipguard/data."
        ),
    ] = None
    download: Annotated[
        bool, Parameter(negative="", help="Fetch data sets known by name that are not there.")
    ] = False
    cache: Annotated[
        Path | None,
        Parameter(
            help="Folder of victims, fitted attacks and embeddings; default: ~/.cache/clipguard/bench."
        ),
    ] = None
    only: Annotated[
        tuple[str, ...], Parameter(help="Compute the rows of this label only, such as none; repeat for more.")
    ] = ()
    cells: Annotated[
        str, Parameter(help="Compute only the cells whose name is like this pattern, such as '*-sig-*'.")
    ] = "*"
    json: Json = False
