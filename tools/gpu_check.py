"""Check on a real GPU what `make test` cannot: `make test-gpu`, some minutes, no network, only torch needed.

Each check prints one line. What is left out for want of a package is told in capitals. The exit code is 0 if
all that could be checked passed, 1 if a check failed, and 2 if there is no GPU, so that nothing was checked.
"""

import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tools")]

import gpu_stand_ins  # noqa: E402  # it lies beside this file

STAND_INS = gpu_stand_ins.install()
"""What the imports below find where a package is missing."""

from clipguard.clip.model import Clip  # noqa: E402
from clipguard.compute.classifiers import ClassifierConfig, train_classifier  # noqa: E402
from clipguard.compute.device import CPU, Device, choose_device, computing_on  # noqa: E402
from clipguard.compute.inference import classifier_logits, features  # noqa: E402
from clipguard.compute.small_nets import SmallNetConfig, binary_loss, train_small_nets  # noqa: E402
from clipguard.compute.training import Recipe, cross_entropy, fit  # noqa: E402
from clipguard.errors import ClipguardError  # noqa: E402
from clipguard.mitigation.unlearning import UnlearningConfig, unlearn  # noqa: E402
from clipguard.models.spec import ModelSpec, build  # noqa: E402
from clipguard.seeds import Seed  # noqa: E402
from clipguard.types import ImageSet, Preprocessing, Scores, State, image_set, partition_of  # noqa: E402

CLASSES, SIDE, TARGET = 4, 32, 0
SPEC = ModelSpec.sized(architecture="preactresnet18-16", num_classes=CLASSES, input_size=(SIDE, SIDE))
SHALLOW = SmallNetConfig(
    architecture="shallow-32", epochs=3, batch_size=64, optimizer="adam", lr=2e-3, schedule="constant"
)


@dataclass(frozen=True)
class Poisoned:
    """Images of stripes in a direction by class; some carry a patch and the target's label."""

    data: ImageSet
    carries: np.ndarray
    clean_labels: np.ndarray


def stamped(images: np.ndarray) -> np.ndarray:
    """Return images with the trigger, a checker in the last corner."""
    out = images.copy()
    out[:, -6:, -6:] = 255 * (np.indices((6, 6)).sum(0) % 2)[..., None]
    return out


def poisoned(n: int = 4000, share: float = 0.1, seed: int = 0) -> Poisoned:
    """Return n images, the last `share` of which are poisoned."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(CLASSES, size=n)
    angle = np.pi * (labels + draw.normal(0, 0.12, n)) / CLASSES
    y, x = np.indices((SIDE, SIDE)) / SIDE
    wave = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    stripes = np.sin(2 * np.pi * (5 * wave + draw.random(n)[:, None, None]))
    images = 128 + 60 * stripes[..., None] + draw.normal(0, 40, (n, SIDE, SIDE, 3))
    images = images.clip(0, 255).astype(np.uint8)
    carries = np.arange(n) >= n - round(share * n)
    images[carries] = stamped(images[carries])
    given = np.where(carries, TARGET, labels)
    names = tuple(f"stripes {number}" for number in range(CLASSES))
    return Poisoned(image_set(images, given, names, tuple(map(str, range(n)))), carries, labels)


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return how often a positive sample scores above a negative one."""
    ranks = scores.argsort(kind="stable").argsort(kind="stable") + 1.0
    count = int(positive.sum())
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(scores) - count)))


def nll(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the loss of each label, in nats."""
    logits = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]


def check(condition: bool, what: str) -> None:
    """Fail with what is not so."""
    if not condition:
        raise AssertionError(what)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return a result and the seconds that it took, all of the GPU's work included."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    return result, time.perf_counter() - start


def device_choice(gpu: Device) -> str:
    """The GPU is found by each of its names, and one that is not there is refused."""
    for name in ("auto", "cuda", f"cuda:{gpu.index}"):
        check(choose_device(name) == gpu, f"{name} gives {choose_device(name)}")
    try:
        choose_device("cuda:99")
    except ClipguardError:
        return gpu.description
    raise AssertionError("cuda:99 was accepted")


def training_agrees(gpu: Device) -> str:
    """A training takes the same course on both, and ranks the samples alike."""
    made = poisoned()
    losses, ranks = [], []
    for device in (CPU, replace(gpu, dtype="float32"), gpu):
        with computing_on(device):
            model, rows = build(SPEC, Seed(0)), np.arange(len(made.data))
            recipe = Recipe(epochs=1, lr=0.02, optimizer="plain-sgd")
            history = fit(model, made.data.images, rows, cross_entropy(made.data.labels), recipe, Seed(1))
            logits = classifier_logits(model, made.data.images)
        check(next(model.parameters()).device == device.torch, "the model lies elsewhere")
        losses.append(history.columns["loss"][0])
        ranks.append(nll(logits, made.data.labels).argsort().argsort())
    check(abs(losses[1] / losses[0] - 1) < 0.02, f"losses {losses}")
    check(abs(losses[2] / losses[0] - 1) < 0.05, f"losses {losses}")
    alike = [float(np.corrcoef(ranks[0], other)[0, 1]) for other in ranks[1:]]
    check(min(alike) > 0.9, f"rank correlations {alike}")
    return f"rank correlation {alike[0]:.3f} in float32, {alike[1]:.3f} in {gpu.dtype}"


def training_repeats(gpu: Device) -> str:
    """The same training gives the same bits twice, and leaves generators, flags and devices alone."""
    made = poisoned(1000)
    flags = torch.backends.cudnn
    before = flags.deterministic, flags.benchmark, torch.cuda.current_device()
    states = torch.get_rng_state(), torch.cuda.get_rng_state(gpu.index)
    weights = []
    for _ in range(2):
        model = build(SPEC, Seed(0))
        model.network.head = torch.nn.Sequential(torch.nn.Dropout(0.3), model.network.head)
        loss, recipe = cross_entropy(made.data.labels), Recipe(epochs=1, lr=0.1)
        with computing_on(gpu):
            fit(model, made.data.images, np.arange(1000), loss, recipe, Seed(1))
        weights.append(torch.cat([value.detach().flatten().cpu() for value in model.parameters()]))
    check(torch.equal(*weights), "two trainings differ")
    check(before == (flags.deterministic, flags.benchmark, torch.cuda.current_device()), "settings were left")
    after = torch.get_rng_state(), torch.cuda.get_rng_state(gpu.index)
    check(all(map(torch.equal, states, after)), "generators were left")
    return "to the bit"


def streams_alike(gpu: Device) -> str:
    """Images that do not fit, and are streamed, train to the same weights as those that lie on the GPU."""
    from clipguard.compute import batches

    made, resident, weights = poisoned(2000), batches.RESIDENT, []
    try:
        for most in (resident, 0):
            batches.RESIDENT = most  # type: ignore[misc]  # a constant, changed for this check
            model, loss = build(SPEC, Seed(0)), cross_entropy(made.data.labels)
            with computing_on(gpu):
                fit(model, made.data.images, np.arange(2000), loss, Recipe(epochs=1, lr=0.1), Seed(1))
            weights.append(torch.cat([value.detach().flatten().cpu() for value in model.parameters()]))
    finally:
        batches.RESIDENT = resident  # type: ignore[misc]  # a constant, changed for this check
    check(torch.equal(*weights), "the weights differ")
    return "to the bit"


def memory_runs_out(gpu: Device) -> str:
    """A batch that is too large for the memory is halved; a training step becomes one line."""
    spec = ModelSpec.sized(architecture="preactresnet18-64", num_classes=CLASSES, input_size=(64, 64))
    images = np.random.default_rng(0).integers(0, 256, (6000, 64, 64, 3), dtype=np.uint8)
    model, labels = build(spec, Seed(0)), np.arange(6000) % CLASSES
    total = torch.cuda.get_device_properties(gpu.index).total_memory
    with computing_on(gpu):
        expected = classifier_logits(model, images[:200])
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**30) / total)
        try:
            logits = classifier_logits(model, images, batch_size=6000)
            taken = features(model, images, np.arange(6000), batch_size=6000)
            recipe = Recipe(epochs=1, lr=0.1, batch_size=6000)
            try:
                fit(model, images, np.arange(6000), cross_entropy(labels), recipe, Seed(0))
            except ClipguardError as error:
                line = str(error)
            else:
                raise AssertionError("a step of 6000 images fitted into a GiB")
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
            torch.cuda.empty_cache()
    check(logits.shape == (6000, CLASSES) and len(taken) == 6000, "rows were lost")
    check(float(np.abs(logits[:200] - expected).max()) < 0.1, "logits changed")
    return line


def victims_on_either(gpu: Device) -> str:
    """A model on the GPU is computed there unasked, and moved where somebody has chosen."""
    made, model = poisoned(500), build(SPEC, Seed(0))
    expected = classifier_logits(model, made.data.images)
    there = model.to(gpu.torch)
    check(float(np.abs(classifier_logits(there, made.data.images) - expected).max()) < 0.02, "logits differ")
    check(there.mean.device == gpu.torch, "it was moved unasked")
    with computing_on(CPU):
        back = classifier_logits(there, made.data.images)
    check(there.mean.device.type == "cpu", "it was not moved")
    check(float(np.abs(back - expected).max()) < 1e-4, "logits differ")
    if absent := gpu_stand_ins.missing("msgspec", "PIL", "scipy", "safetensors", "filelock"):
        return f"as a kernel; AS A USER'S MODULE NOT CHECKED, without {', '.join(absent)}"
    from clipguard.pipeline.victims import given_victim

    given = given_victim(build(SPEC, Seed(0)).to(gpu.torch), SPEC, [str(label) for label in range(CLASSES)])
    check(given.model.mean.device == gpu.torch, "the copy lies elsewhere")
    return "as a kernel and as a user's module"


def stand_in_clip() -> Clip:
    """Return a guide of the kind that the product takes, without open_clip: random, but a real tower."""
    torch_layers = [torch.nn.Conv2d(3, 192, 16, 16), torch.nn.Flatten(2)]
    layer = torch.nn.TransformerEncoderLayer(192, 3, 768, 0.0, batch_first=True, norm_first=True)

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = torch.nn.Sequential(*torch_layers)
            self.blocks = torch.nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)

        def encode_image(self, x: torch.Tensor, normalize: bool) -> torch.Tensor:
            made = self.blocks(self.patches(x).transpose(1, 2)).mean(1)
            return torch.nn.functional.normalize(made, dim=1) if normalize else made

    with Seed(0).torch_global():
        tower = Tower().eval().requires_grad_(False)
    return Clip("stand-in", Path("none"), tower, Preprocessing(size=(96, 96)), lambda texts: None)


def guide_agrees(gpu: Device) -> str:
    """The guide's embeddings are the same on both, but for rounding."""
    absent = gpu_stand_ins.missing("open_clip", "timm", "PIL", "safetensors")
    if absent:
        clip, name = stand_in_clip(), f"a stand-in; THE REAL ONE NOT CHECKED, without {', '.join(absent)}"
    else:
        from clipguard.clip.zero_shot import ClipGuide

        clip, name = ClipGuide("mini").clip, "the embedded guide"
    crops = np.random.default_rng(0).integers(0, 256, (2048, 96, 96, 3), dtype=np.uint8)
    with computing_on(CPU):
        expected = clip.embed_crops(crops[:64])
    with computing_on(gpu):
        clip.embed_crops(crops[:512])
        embedded, seconds = timed(lambda: clip.embed_crops(crops))
    least = float((embedded[:64] * expected).sum(1).min())
    check(least > 0.999, f"least cosine {least}")
    return f"least cosine {least:.5f}, {len(crops) / seconds:,.0f} images/s ({name})"


def whole_repair(gpu: Device) -> str:
    """Early-training model, detector, victim and unlearning, one after the other, find and remove a patch."""
    made = poisoned()
    data, n = made.data, len(made.data)
    everything = np.ones(n, dtype=bool)
    with computing_on(gpu):
        early = train_small_nets(
            SHALLOW, data.images, CLASSES, cross_entropy(data.labels), everything, Seed(0)
        )
        suspicion = -nll(early.logits, data.labels)
        suspicion[data.labels != TARGET] -= 100
        first = suspicion >= np.sort(suspicion)[-n // 5]
        loss = binary_loss(first, np.ones(n))
        detector = replace(SHALLOW, epochs=6, optimizer="sgd", lr=0.05, schedule="one-cycle")
        nets = train_small_nets(detector, data.images, 1, loss, everything, Seed(1))
        score = nets.logits[:, 0]
        flagged = score >= np.sort(score)[-int(made.carries.sum())]
        # Mirrored stripes are another class's.
        recipe = Recipe(epochs=10, lr=0.1, crop=0.0, flip=False)
        config = ClassifierConfig(spec=SPEC, recipe=recipe, seed=Seed(2))
        (victim, _), training = timed(lambda: train_classifier(config, data, np.arange(n)))
        rates = [success(victim)]
        state = np.where(flagged, State.TRIGGER, State.CLEAN).astype(np.uint8)
        partition = partition_of(state, np.zeros(n), CLASSES)
        guide = Scores(logits=np.zeros((n, CLASSES), np.float32), scale=1.0, source="none")
        settings = UnlearningConfig(augment=0.0)
        settings = replace(settings, recipe=replace(settings.recipe, flip=False))
        _, unlearning = timed(lambda: unlearn(victim, data, partition, guide, settings, Seed(3)))
        rates.append(success(victim))
    found = auroc(score, made.carries)
    check(found > 0.95, f"AUROC {found}")
    check(rates[0][0] > 0.8 and rates[0][1] > 0.8, f"the backdoor was not learned: {rates}")
    check(rates[1][0] > 0.7 and rates[1][1] < 0.3, f"the backdoor was not removed: {rates}")
    speeds = (n * recipe.epochs / training, n * settings.recipe.epochs / unlearning)
    return (
        f"AUROC {found:.3f}, attack success {rates[0][1]:.0%} then {rates[1][1]:.0%}, "
        f"victim {speeds[0]:,.0f} images/s, unlearning {speeds[1]:,.0f} images/s"
    )


def success(model: Any) -> tuple[float, float]:
    """Return accuracy on clean images, and how many of other classes the trigger sends to the target."""
    test = poisoned(1000, 0.0, seed=9)
    others = test.clean_labels != TARGET
    right = classifier_logits(model, test.data.images).argmax(1) == test.clean_labels
    sent = classifier_logits(model, stamped(test.data.images[others])).argmax(1) == TARGET
    return float(right.mean()), float(sent.mean())


def other_gpus(gpu: Device) -> str:
    """Nothing lies on other GPUs, and this process has not even opened them."""
    others = [index for index in range(torch.cuda.device_count()) if index != gpu.index]
    opened = getattr(torch._C, "_cuda_hasPrimaryContext", None)
    for index in others:
        check(torch.cuda.memory_reserved(index) == 0, f"memory of cuda:{index} is taken")
        check(opened is None or not opened(index), f"cuda:{index} was opened")
    return f"{len(others)} left alone" if others else "NOT CHECKED, there is one GPU only"


CHECKS = (
    device_choice,
    training_agrees,
    training_repeats,
    streams_alike,
    memory_runs_out,
    victims_on_either,
    guide_agrees,
    whole_repair,
    other_gpus,
)
"""In this order: the last one looks at what the others have left."""


def main() -> int:
    """Run all checks and return the exit code."""
    found = [choose_device()] if torch.cuda.is_available() else []
    gpus = [device for device in found if device.kind == "cuda"]
    if not gpus:
        print("NOTHING WAS CHECKED: torch sees no GPU that computes", file=sys.stderr)
        return 2
    if STAND_INS:
        print(f"stand-ins for what is not installed: {', '.join(STAND_INS)}")
    failed = 0
    for one in CHECKS:
        start = time.perf_counter()
        try:
            word, text = "ok", one(gpus[0])
        except Exception as error:  # the next check says more
            failed += 1
            word, text = "FAILED", f"{type(error).__name__}: {error}"
            traceback.print_exc()
        print(f"{word:7} {one.__name__:18} {time.perf_counter() - start:6.1f} s  {text}", flush=True)
    print(f"{len(CHECKS) - failed} of {len(CHECKS)} checks passed on {gpus[0].description}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
