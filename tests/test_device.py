"""compute.device: a device that computes or one line; what a GPU would do that can be seen without one."""

import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from clipguard.compute import batches, device
from clipguard.compute.device import (
    CPU,
    VARIABLE,
    Device,
    arithmetic,
    choose_device,
    computing_on,
    current_device,
    device_for,
    here,
)
from clipguard.compute.inference import classifier_logits, features, piecewise
from clipguard.compute.training import Recipe, cross_entropy, fit
from clipguard.data.decode import prepared
from clipguard.errors import ClipguardError
from clipguard.models.spec import ModelSpec, build
from clipguard.pipeline.defender import Defender
from clipguard.runs import read_json
from clipguard.seeds import Seed
from tiny_runs import CONFIG, GUIDE, poisoned_set, source_of

SPEC = ModelSpec.sized(architecture="preactresnet18-4", num_classes=3, input_size=(8, 8))
IMAGES = np.random.default_rng(0).integers(0, 256, (23, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(23) % 3
RECIPE = Recipe(epochs=1, batch_size=8, lr=0.1)


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that there are three GPUs; give the faults that their trials find, None where one computes."""
    names = ("Old GPU", "New GPU", "Newer GPU")
    generations, faults = (7, 9, 10), [None, None, None]
    fake = SimpleNamespace(
        device_count=lambda: 3,
        get_device_name=lambda index: names[index],
        get_device_capability=lambda index: (generations[index], 0),
    )
    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.setattr(device, "_fault", lambda chosen: faults[chosen.index])
    monkeypatch.delenv(VARIABLE, raising=False)
    return faults


def test_auto_takes_the_first_gpu_that_computes_and_says_which_it_passed_over(gpus):
    assert choose_device() == choose_device("auto")
    assert choose_device() == Device(kind="cuda", index=0, dtype="float16", name="Old GPU")
    gpus[0] = "no kernel image is available"
    chosen = choose_device("auto")
    assert (chosen.index, chosen.name, chosen.dtype) == (1, "New GPU", "bfloat16")
    assert chosen.description == "New GPU, bfloat16"
    (note,) = chosen.passed_over
    assert note == "GPU cuda:0 does not compute and was not used: no kernel image is available"
    gpus[:] = ["broken"] * 3
    chosen = choose_device()
    assert (chosen.kind, len(chosen.passed_over), chosen.description) == ("cpu", 3, "cpu")


def test_a_named_gpu_is_taken_or_refused_in_one_line(gpus, monkeypatch):
    assert choose_device("cuda") == choose_device("cuda:0")
    assert choose_device("cuda:2").name == "Newer GPU"
    assert choose_device("cpu") == CPU
    monkeypatch.setenv(VARIABLE, "cuda:1")
    assert choose_device().index == 1
    assert choose_device("cpu") == CPU
    gpus[1] = "out of memory"
    with pytest.raises(ClipguardError, match=r"^device cuda:1 does not compute: out of memory; give another"):
        choose_device()
    with pytest.raises(ClipguardError, match=r"^device cuda:3 is not there: torch sees 3 GPUs"):
        choose_device("cuda:3")
    for name in ("gpu", "cuda:x", "cuda:-1", "cuda0x", "mps"):
        with pytest.raises(ClipguardError, match=rf"^device '{name}' is unknown: give auto, cpu, cuda"):
            choose_device(name)


def test_the_trial_passes_on_what_computes_and_names_what_does_not():
    assert device._fault(CPU) is None
    if not torch.cuda.is_available():
        assert device._fault(Device(kind="cuda"))


def test_a_trial_with_wrong_results_fails(monkeypatch):
    convolve = nn.functional.conv2d
    monkeypatch.setattr(nn.functional, "conv2d", lambda *given: 2 * convolve(*given))
    assert device._fault(CPU) == "its results are wrong"


def test_keys_name_a_gpu_and_of_the_processor_the_precision_of_trainings_alone():
    assert here() == torch.device("cpu")
    for precision, named in (("float32", {}), ("bfloat16", {"trained_in": "bfloat16"})):
        processor = Device(trained_in=precision)
        with computing_on(processor):
            assert arithmetic() == {"threads": torch.get_num_threads(), **named}
            assert current_device() is processor
    assert current_device() is None
    token = device._CURRENT.set(Device(kind="cuda", index=2, name="A GPU", dtype="float16"))
    try:
        assert arithmetic() == {"threads": torch.get_num_threads(), "device": "A GPU, float16"}
        assert here() == torch.device("cuda", 2)
    finally:
        device._CURRENT.reset(token)


def test_a_model_is_computed_where_it_lies_unless_somebody_has_chosen():
    model = build(SPEC, Seed(0))
    assert device_for(model) == CPU
    chosen = replace(CPU, passed_over=("a note",))
    with computing_on(chosen):
        assert device_for(model) is chosen
        assert device_for(nn.ReLU()) is chosen


def test_computing_repeats_itself_and_leaves_cudnns_flags(monkeypatch):
    flags = torch.backends.cudnn
    before = flags.deterministic, flags.benchmark
    with device._repeatable():
        assert (flags.deterministic, flags.benchmark) == (True, False)
    assert (flags.deterministic, flags.benchmark) == before


class Small:
    """What computes only as many rows at once as a memory holds, as a GPU does."""

    def __init__(self, most: int) -> None:
        self.most, self.sizes = most, []

    def __call__(self, rows: int) -> None:
        self.sizes.append(rows)
        if rows > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("most", "sizes"), [(100, [8, 8, 7]), (5, [8, 4, 4, 4, 4, 4, 3]), (1, [8, 4, 2] + [1] * 23)]
)
def test_batches_that_do_not_fit_are_halved_and_none_is_lost_or_repeated(most, sizes):
    memory = Small(most)

    def values(part: slice) -> list[int]:
        rows = list(range(23))[part]
        memory(len(rows))
        return rows

    assert [row for piece in piecewise(values, 23, 8) for row in piece] == list(range(23))
    assert memory.sizes == sizes


def test_a_memory_that_holds_not_even_one_row_is_a_fault_in_one_line():
    memory = Small(0)
    with pytest.raises(ClipguardError, match=r"^the GPU.s memory does not hold the model and one image"):
        piecewise(lambda part: memory(part.stop - part.start), 23, 8)
    assert memory.sizes == [8, 4, 2, 1]


def limited(most: int, where: str) -> tuple[nn.Module, Small]:
    """Return a model that a part of, by its name, exceeds the memory with more images than `most`."""
    model, memory = build(SPEC, Seed(0)), Small(most)
    layer = model.network.get_submodule(where)
    layer.register_forward_hook(lambda _, inputs, output: memory(len(output)))
    return model, memory


@pytest.mark.parametrize("where", ["stem", "head"])
def test_logits_and_features_are_the_same_after_batches_were_halved(where):
    rows = np.arange(23)[::-1].copy()
    whole = build(SPEC, Seed(0))
    expected = classifier_logits(whole, IMAGES), features(whole, IMAGES, rows)
    model, memory = limited(3, where)
    assert np.allclose(classifier_logits(model, IMAGES, 8), expected[0], atol=1e-5)
    assert np.allclose(features(model, IMAGES, rows, 8), expected[1], atol=1e-5)
    assert memory.sizes.count(8) == 2


def test_a_training_step_that_does_not_fit_is_a_fault_in_one_line():
    model, _ = limited(3, "stem")
    with pytest.raises(ClipguardError, match="does not hold a training step of 8 images of 8 x 8: free some"):
        fit(model, IMAGES, np.arange(23), cross_entropy(LABELS), RECIPE, Seed(0))


def test_images_on_the_device_or_streamed_to_it_give_the_same_batches():
    """The way of images to a GPU, here with the processor at its end."""
    chosen = [np.array([3, 1, 22]), np.array([0, 0]), np.arange(23)]
    readonly = IMAGES.view()
    readonly.flags.writeable = False
    resident = batches._uploaded(readonly, torch.device("cpu"))
    assert np.array_equal(resident.numpy(), IMAGES)
    for rows, batch in zip(chosen, batches.batches_on(CPU, readonly)(chosen), strict=True):
        assert np.array_equal(batch.numpy(), IMAGES[rows])


def test_streamed_batches_come_in_order(monkeypatch):
    # Memory is pinned for a GPU only.
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    chosen = [np.arange(start, 23) for start in range(20)]
    streamed = list(batches._streamed(IMAGES, torch.device("cpu"), chosen))
    assert len(streamed) == 20
    assert all(np.array_equal(b.numpy(), IMAGES[rows]) for rows, b in zip(chosen, streamed, strict=True))


def test_an_upload_that_does_not_fit_is_streamed(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", full)
    assert batches._uploaded(IMAGES, torch.device("cpu")) is None


@pytest.fixture
def stand_in_gpu(monkeypatch):
    """Return a GPU whose work the processor does: all of its code but CUDA's own."""
    monkeypatch.setattr(Device, "torch", property(lambda device: torch.device("cpu")))
    monkeypatch.setattr(Device, "selected", lambda device: nullcontext())
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype: autocast("cpu", dtype))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    return Device(kind="cuda", dtype="bfloat16", name="Stand-in")


def weights(model):
    return torch.cat([value.detach().flatten() for value in model.parameters()])


def test_streamed_images_train_to_the_same_weights_as_those_on_the_gpu(stand_in_gpu, monkeypatch):
    trained = []
    for most in (batches.RESIDENT, 0):
        monkeypatch.setattr(batches, "RESIDENT", most)
        model = build(SPEC, Seed(0))
        with computing_on(stand_in_gpu):
            fit(model, IMAGES, np.arange(23), cross_entropy(LABELS), replace(RECIPE, epochs=2), Seed(0))
        trained.append(weights(model))
    assert torch.equal(*trained)


def test_a_training_sees_the_same_crops_on_either_device(stand_in_gpu):
    recipe = replace(RECIPE, lr=1e-3, optimizer="plain-sgd")
    ends = []
    exact = Device()
    for where, seed in ((exact, 0), (stand_in_gpu, 0), (exact, 1)):
        model = build(SPEC, Seed(0))
        with computing_on(where):
            fit(model, IMAGES, np.arange(23), cross_entropy(LABELS), recipe, Seed(seed))
        ends.append(weights(model))
    processor, gpu, others = ends
    # It rounds otherwise, but goes the same way; with other crops, the way is another.
    assert 0 < (gpu - processor).norm() < 0.4 * (others - processor).norm()


def test_a_guide_that_overflows_in_half_precision_is_asked_again_in_single(stand_in_gpu):
    clip = GUIDE.clip
    crops = [prepared(image, clip.preprocessing) for image in IMAGES]
    expected = clip.embed_crops(crops)
    with computing_on(stand_in_gpu):
        half = clip.embed_crops(crops)
        assert 0.999 < (half * expected).sum(1).min() < 1.00001
        assert not np.array_equal(half, expected)
        asked = []

        def encode(pixels: torch.Tensor, normalize: bool) -> torch.Tensor:
            asked.append((len(pixels), torch.is_autocast_enabled("cpu")))
            made = clip.network.encode_image(pixels, normalize=normalize)
            return made / 0 if torch.is_autocast_enabled("cpu") else made

        overflowing = nn.Module()
        overflowing.encode_image = encode
        assert np.allclose(replace(clip, network=overflowing).embed_crops(crops), expected, atol=1e-5)
        assert asked == [(23, True), (23, False)]


def test_a_whole_repair_takes_the_way_of_a_gpu(stand_in_gpu, tmp_path):
    data, carries = poisoned_set()
    with computing_on(stand_in_gpu):
        made = Defender(GUIDE, tmp_path / "run", config=CONFIG).fit(source_of(data))
    manifest = read_json(tmp_path / "run/manifest.json")
    assert manifest["device"] == "Stand-in, bfloat16"
    keys = [read_json(stage.path / "manifest.json") for stage in made.stages_.values()]
    assert {key["device"] for key in keys} == {"Stand-in, bfloat16"}
    assert made.samples_["poison_score"][carries].mean() > made.samples_["poison_score"][~carries].mean()


def test_seeding_leaves_every_gpu_alone_and_the_processors_generator_as_it_was(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    for name in ("manual_seed", "manual_seed_all", "get_rng_state", "set_rng_state", "init", "_lazy_call"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name, **__: pytest.fail(name))
    state = torch.random.get_rng_state()
    with Seed(3).torch_global():
        first = torch.rand(3)
    with Seed(3).torch_global():
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_defender_refuses_a_device_before_any_work(tmp_path):
    source = source_of(poisoned_set()[0])
    with pytest.raises(ClipguardError, match=r"^device 'tpu' is unknown"):
        Defender(GUIDE, tmp_path / "run", config=CONFIG, device="tpu").scan(source)
    with pytest.raises(ClipguardError, match=r"^0 threads: give 1 or more"):
        Defender(GUIDE, tmp_path / "run", config=CONFIG, threads=0).scan(source)
    assert not (tmp_path / "run").exists()


COMMAND = """
    import os, sys
    from clipguard.cli import main
    main(["scan", "nowhere", "-o", sys.argv[1], "--device", "tpu"])
    print(os.environ.get("OMP_WAIT_POLICY"))
"""


@pytest.mark.parametrize(("given", "policy"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")])
def test_threads_of_the_command_line_sleep_while_they_wait(tmp_path, given, policy):
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
    code = "\n".join(line.removeprefix("    ") for line in COMMAND.splitlines())
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == policy


def test_the_library_leaves_that_to_its_caller():
    code = "import os; import clipguard.pipeline.defender; print(os.environ.get('OMP_WAIT_POLICY'))"
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"
