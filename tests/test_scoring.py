"""compute.inference: every image once, in order, whole shards kept over a kill."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from clipguard.clip import embeddings as embedding_pass
from clipguard.clip.embeddings import embed_source
from clipguard.clip.model import Clip
from clipguard.compute.inference import classifier_logits, features, planes
from clipguard.data import ImageSource
from clipguard.data.decode import decode, thumbnail
from clipguard.errors import ClipguardError
from clipguard.models.features import head_of
from clipguard.models.spec import ModelSpec, Normalized, build
from clipguard.runs import read_array, read_image_set
from clipguard.seeds import Seed

N = 24
SIZE = (8, 10)
SPEC = ModelSpec.sized(architecture="preactresnet18-4", num_classes=3, input_size=(8, 8))
FINAL = {"embeddings.npy", "images.npy", "meta.json", "rows.parquet", "unreadable.json"}


class Power(BaseException):
    """What a kill is to the code: nothing that it catches."""


class TinyEncoder(torch.nn.Module):
    """Embeds an image as its normalised colours; counts its images and fails on demand."""

    def __init__(self):
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.zeros(()))
        self.images, self.fails_after = 0, None

    def encode_image(self, pixels, normalize):
        if self.fails_after is not None and self.images >= self.fails_after:
            raise Power
        self.images += len(pixels)
        return torch.nn.functional.normalize(pixels.flatten(1), dim=1)


def tiny_clip(tmp_path):
    steps = [transforms.Resize((4, 4)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    return Clip(
        name="tiny",
        weights=tmp_path / "none",
        network=TinyEncoder(),
        preprocess=transforms.Compose(steps),
        tokenizer=list,
    )


@pytest.fixture
def clip(tmp_path):
    return tiny_clip(tmp_path)


def folder_of(path, broken=()):
    """Return a source of N images of different sizes in two class folders, those of `broken` unreadable."""
    draw = np.random.default_rng(0)
    for row in range(N):
        file = path / ("cat" if row < 10 else "dog") / f"{row:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        size = (8 + row % 3, 10, 3) if row % 4 else (*SIZE, 3)
        Image.fromarray(draw.integers(0, 256, size, dtype=np.uint8)).save(file)
        if row in broken:
            file.write_bytes(b"no image at all")
    return ImageSource.open(path)


@pytest.fixture
def source(tmp_path):
    return folder_of(tmp_path / "data")


def small_shards(monkeypatch, rows=6, batch=4):
    monkeypatch.setattr(embedding_pass, "SHARD", rows)
    monkeypatch.setattr(embedding_pass, "_BATCH", batch)


def made(folder):
    folder.mkdir(exist_ok=True)
    return folder


def contents(folder):
    """Return what the store keeps: all but what it sweeps away when the stage is finished."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith(".part")}


def undisturbed(tmp_path, source):
    folder = made(tmp_path / "undisturbed")
    embed_source(source, tiny_clip(tmp_path), SIZE, folder)
    return contents(folder)


def test_thumbnails_embeddings_labels_and_names_stand_in_the_order_of_the_source(
    tmp_path, source, clip, monkeypatch
):
    small_shards(monkeypatch)
    folder = made(tmp_path / "out")
    embed_source(source, clip, SIZE, folder)
    data, embeddings = read_image_set(folder), read_array(folder / "embeddings.npy")
    assert data.ids == source.ids
    assert data.class_names == ("cat", "dog")
    assert np.array_equal(data.labels, source.labels)
    for row, item in enumerate(source.read(range(N))):
        pixels = decode(item)
        assert np.array_equal(data.images[row], thumbnail(pixels, SIZE))
        np.testing.assert_allclose(embeddings[row], clip.embed_images([pixels])[0], atol=1e-6)
    assert json.loads((folder / "unreadable.json").read_text()) == []


def test_every_image_is_embedded_once_and_only_the_results_are_left(tmp_path, source, clip, monkeypatch):
    small_shards(monkeypatch)
    folder = made(tmp_path / "out")
    embed_source(source, clip, SIZE, folder)
    assert clip.network.images == N
    assert set(contents(folder)) == FINAL


@pytest.mark.parametrize("rows", [4, 20, 1000])
def test_the_shard_size_changes_no_byte_where_batches_stay_the_same(
    tmp_path, source, clip, monkeypatch, rows
):
    small_shards(monkeypatch, rows=12)
    expected = undisturbed(tmp_path, source)
    small_shards(monkeypatch, rows=rows)
    folder = made(tmp_path / "out")
    embed_source(source, clip, SIZE, folder)
    assert contents(folder) == expected


@pytest.mark.parametrize("fails_after", [0, 4, 10, 18])
def test_a_killed_pass_goes_on_at_the_first_shard_that_is_not_whole(
    tmp_path, source, clip, monkeypatch, fails_after
):
    small_shards(monkeypatch)
    folder = made(tmp_path / "out")
    clip.network.fails_after = fails_after
    with pytest.raises(Power):
        embed_source(source, clip, SIZE, folder)
    again = tiny_clip(tmp_path)
    embed_source(source, again, SIZE, folder)
    assert again.network.images == N - 6 * (fails_after // 6)
    assert contents(folder) == undisturbed(tmp_path, source)


@pytest.mark.parametrize("name", ["images", "embeddings", "rows", "unreadable"])
def test_a_kill_while_a_shard_is_written_leaves_it_to_be_done_again(
    tmp_path, source, clip, monkeypatch, name
):
    small_shards(monkeypatch)
    folder = made(tmp_path / "out")

    def write_json(path, value, write=embedding_pass.write_json):
        if path.parent.name == "shard-000001" and path.stem == name:
            raise Power
        write(path, value)

    def write_array(path, value, write=embedding_pass.write_array):
        if path.parent.name == "shard-000001" and path.stem == name:
            path.write_bytes(b"torn")
            raise Power
        write(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(embedding_pass, "write_json", write_json)
        patch.setattr(embedding_pass, "write_array", write_array)
        with pytest.raises(Power):
            embed_source(source, clip, SIZE, folder)
    embed_source(source, tiny_clip(tmp_path), SIZE, folder)
    assert contents(folder) == undisturbed(tmp_path, source)


def test_a_kill_after_the_merge_computes_no_image_again(tmp_path, source, clip, monkeypatch):
    # The store still has to hash many GB then, which takes its time.
    small_shards(monkeypatch)
    folder = made(tmp_path / "out")
    embed_source(source, clip, SIZE, folder)
    again = tiny_clip(tmp_path)
    embed_source(source, again, SIZE, folder)
    assert again.network.images == 0
    assert contents(folder) == undisturbed(tmp_path, source)


def test_unreadable_images_are_left_out_and_listed_with_the_reason(tmp_path, clip, monkeypatch):
    small_shards(monkeypatch)
    source = folder_of(tmp_path / "data", broken=(3, 20))
    folder = made(tmp_path / "out")
    embed_source(source, clip, SIZE, folder)
    listed = json.loads((folder / "unreadable.json").read_text())
    assert [entry["id"] for entry in listed] == [source.ids[3], source.ids[20]]
    assert all(entry["reason"] for entry in listed)
    data = read_image_set(folder)
    rows = [row for row in range(N) if row not in (3, 20)]
    assert data.ids == tuple(source.ids[row] for row in rows)
    assert np.array_equal(data.labels, source.labels[rows])
    assert len(read_array(folder / "embeddings.npy")) == N - 2
    for row, item in zip(rows, source.read(np.array(rows)), strict=True):
        assert np.array_equal(data.images[rows.index(row)], thumbnail(decode(item), SIZE))


def test_a_shard_without_any_readable_image_is_passed_over(tmp_path, clip, monkeypatch):
    small_shards(monkeypatch, rows=2)
    source = folder_of(tmp_path / "data", broken=(4, 5))
    folder = made(tmp_path / "out")
    embed_source(source, clip, SIZE, folder)
    assert read_array(folder / "embeddings.npy").shape == (N - 2, 48)
    assert set(contents(folder)) == FINAL


@pytest.mark.parametrize(
    ("broken", "about"),
    [((0, 1, 2), "3 of 24 images .* more than 10%"), (tuple(range(N)), "24 of 24 images")],
)
def test_too_many_unreadable_images_are_an_error(tmp_path, clip, monkeypatch, broken, about):
    small_shards(monkeypatch)
    source = folder_of(tmp_path / "data", broken=broken)
    with pytest.raises(ClipguardError, match=about):
        embed_source(source, clip, SIZE, made(tmp_path / "out"))


def test_progress_ends_at_the_whole_and_never_goes_back(tmp_path, source, clip, monkeypatch):
    small_shards(monkeypatch, rows=10)
    calls = []
    embed_source(source, clip, SIZE, made(tmp_path / "out"), lambda done, total: calls.append((done, total)))
    assert calls == [(10, N), (20, N), (24, N)]


def pictures(n=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


def test_logits_are_those_of_the_model_one_image_at_a_time():
    model, images = build(SPEC, Seed(0)), pictures()
    found = classifier_logits(model, images, batch_size=7)
    assert found.shape == (30, 3)
    assert found.dtype == np.float32
    with torch.inference_mode():
        for row, image in enumerate(images):
            alone = model(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
            np.testing.assert_allclose(found[row], alone.numpy(), atol=1e-5)


def test_scoring_puts_a_model_in_evaluation_mode_and_changes_no_weight_or_statistic():
    model = build(SPEC, Seed(0)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    classifier_logits(model, pictures())
    assert not model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_images_in_a_read_only_memory_map_are_scored_without_a_warning(tmp_path, recwarn):
    np.save(tmp_path / "images.npy", pictures())
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    model = build(SPEC, Seed(0))
    assert np.array_equal(classifier_logits(model, mapped), classifier_logits(model, pictures()))
    assert [str(warning.message) for warning in recwarn] == []


def test_features_are_what_the_last_layer_is_given_of_the_given_rows():
    model = build(SPEC, Seed(0))
    images = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
    rows = np.array([3, 20, 5])
    values = features(model, images, rows, batch_size=2)
    (head,) = [m for m in model.network.modules() if isinstance(m, torch.nn.Linear)]
    with torch.no_grad():
        logits = head(torch.from_numpy(values)).numpy()
    assert np.allclose(logits, classifier_logits(model, images)[rows], atol=1e-5)
    assert head_of(model, planes(images[:1])) is head
    # The hooks are gone.
    assert not head._forward_pre_hooks


class Convolutional(torch.nn.Module):
    """Ends in a convolution and has a linear layer, of as many outputs, that it never calls."""

    def __init__(self):
        super().__init__()
        self.last, self.unused = torch.nn.Conv2d(3, 3, 8), torch.nn.Linear(7, 3)

    def forward(self, x):
        return self.last(x).flatten(1)


class Twice(torch.nn.Module):
    """Asks its last layer twice an image, with the input by name the second time."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(192, 3)

    def forward(self, x):
        return self.head(x.flatten(1)) * 0 + self.head(input=x.flatten(1))


@pytest.mark.parametrize("network", [Convolutional, Twice])
def test_models_that_do_not_end_in_a_linear_layer_give_their_logits(network):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    model = Normalized(network(), SPEC)
    assert head_of(model, planes(images[:1])) is None
    assert np.array_equal(features(model, images, np.arange(5)), classifier_logits(model, images))


def test_features_that_are_no_numbers_are_refused_in_one_line():
    model = build(SPEC, Seed(0))
    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    (head,) = [m for m in model.network.modules() if isinstance(m, torch.nn.Linear)]
    head.register_forward_pre_hook(lambda _, inputs: (inputs[0] / 0,))
    with pytest.raises(ClipguardError, match="NaN or Inf for some images: give another model"):
        features(model, images, np.arange(2))
