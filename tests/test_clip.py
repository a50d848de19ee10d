import hashlib
import importlib.util
import itertools
import json
import shutil
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from clipguard.clip import loading
from clipguard.clip import model as clip
from clipguard.clip.loading import CONFIG, WEIGHTS, load_clip
from clipguard.data.decode import prepared
from clipguard.errors import ClipguardError
from clipguard.seeds import Seed

REPOSITORY = "nobody/tiny"
PREPROCESS = {
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.25, 0.3],
    "interpolation": "bilinear",
    "resize_mode": "squash",
}


def model_config(*, sigmoid: bool) -> dict:
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
        "custom_text": True,
    }
    return config | ({"init_logit_bias": -10.0, "init_logit_scale": 2.302585} if sigmoid else {})


def write_model(folder: Path, *, sigmoid: bool = False) -> Path:
    """Write a random model in open_clip's folder format."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model_config(sigmoid=sigmoid)
    with Seed(0).child("tiny").torch_global():
        network = open_clip.CustomTextCLIP(**{key: config[key] for key in config if key != "custom_text"})
    save_file(network.state_dict(), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}))
    return folder


def photos(count: int, height: int = 40, width: int = 30) -> np.ndarray:
    return Seed(count).child("photos").generator().integers(0, 256, (count, height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def softmax_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("softmax"))


@pytest.fixture(scope="module")
def sigmoid_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("sigmoid"), sigmoid=True)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
    return tmp_path / "hub"


class Hub(ThreadingHTTPServer):
    """A hub on this machine: serves one folder, or answers everything with one status."""

    def __init__(self, folder: Path | None, status: int = 200) -> None:
        self.folder, self.status = folder, status
        self.requests: list[tuple[str, str]] = []
        super().__init__(("127.0.0.1", 0), HubAnswer)


class HubAnswer(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        self.server.requests.append((self.command, self.path))
        file = None if self.server.folder is None else self.server.folder / Path(self.path).name
        if file is None or not file.is_file():
            self.send_response(self.server.status if file is None else 404)
            if file is not None:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(request: pytest.FixtureRequest, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder, status = request.param
    served = request.getfixturevalue(folder) if isinstance(folder, str) else folder
    with Hub(served, status) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        point_at(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()


def point_at(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )


def refusal(model: str, pretrained: str = "laion2b_s34b_b79k") -> str:
    with pytest.raises(ClipguardError) as caught:
        load_clip(model, pretrained)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_image_embeddings_equal_open_clips_own(softmax_folder: Path) -> None:
    images = photos(5)
    network, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{softmax_folder}")
    network.eval()
    with torch.no_grad():
        batch = torch.stack([preprocess(Image.fromarray(image)) for image in images])
        expected = network.encode_image(batch, normalize=True).numpy()
    embeddings = load_clip(f"local-dir:{softmax_folder}").embed_images(images)
    np.testing.assert_allclose(embeddings, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["softmax_folder", "mini"])
def test_batched_pixels_are_the_same_floats_as_open_clips_preprocessing(
    name: str, request: pytest.FixtureRequest
) -> None:
    mini = Path(clip.__file__).parent / "mini"
    model = load_clip(f"local-dir:{mini if name == 'mini' else request.getfixturevalue(name)}")
    images = [photos(1, 32, 32)[0], photos(1, 50, 33)[0], photos(1, 7, 200)[0]]
    _, theirs = open_clip.create_model_from_pretrained(f"local-dir:{model.weights.parent}")
    expected = torch.stack([theirs(Image.fromarray(image)) for image in images])
    assert torch.equal(model.pixels([prepared(image, model.preprocessing) for image in images]), expected)


def test_images_of_any_size_get_one_embedding_of_length_one_in_order(softmax_folder: Path) -> None:
    model = load_clip(f"local-dir:{softmax_folder}")
    images = [photos(1, height, width)[0] for height, width in ((1, 1), (16, 90), (64, 64), (90, 16))]
    together = model.embed_images(images)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.concatenate([model.embed_images([image]) for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_shards_cut_at_whole_chunks_give_bit_identical_embeddings(softmax_folder: Path) -> None:
    model = load_clip(f"local-dir:{softmax_folder}")
    images = photos(2 * clip.IMAGE_CHUNK + 3)
    parts = [model.embed_images(images[: clip.IMAGE_CHUNK]), model.embed_images(images[clip.IMAGE_CHUNK :])]
    assert np.array_equal(model.embed_images(images), np.concatenate(parts))


def test_text_embeddings_have_length_one_and_do_not_depend_on_the_chunk(
    softmax_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_clip(f"local-dir:{softmax_folder}")
    texts = ["cat", "dog", "a photo of a very " + "long " * 50 + "train", "", "車"]
    whole = model.embed_texts(texts)
    monkeypatch.setattr(clip, "TEXT_CHUNK", 2)
    np.testing.assert_allclose(model.embed_texts(texts), whole, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)


def test_a_softmax_model_has_its_scale_exponentiated(softmax_folder: Path) -> None:
    model = load_clip(f"local-dir:{softmax_folder}")
    assert model.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)


def test_a_sigmoid_models_logits_are_scale_times_cosine_plus_bias(sigmoid_folder: Path) -> None:
    model = load_clip(f"local-dir:{sigmoid_folder}")
    assert model.logit_scale == pytest.approx(10, rel=1e-5)
    bias = model.network.logit_bias.item()
    assert bias == -10
    images, texts = photos(3), ["cat", "dog"]
    with torch.no_grad():
        expected, _ = model.network.get_logits(
            model.pixels([prepared(image, model.preprocessing) for image in images]), model.tokenizer(texts)
        )
    logits = model.logit_scale * model.embed_images(images) @ model.embed_texts(texts).T + bias
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6), st.floats(0.5, 20), st.floats(-12, 2))
def test_sigmoids_given_that_one_class_is_true_are_the_softmax_of_the_scaled_cosines(
    cosines: list[float], scale: float, bias: float
) -> None:
    single = 1 / (1 + np.exp(-(scale * np.array(cosines) + bias)))
    joint = {
        truth: np.prod([p if true else 1 - p for p, true in zip(single, truth, strict=True)])
        for truth in itertools.product((False, True), repeat=len(cosines))
    }
    one_true = {truth.index(True): p for truth, p in joint.items() if sum(truth) == 1}
    posterior = np.array([one_true[j] for j in range(len(cosines))]) / sum(one_true.values())
    odds = np.exp(scale * np.array(cosines))
    np.testing.assert_allclose(posterior, odds / odds.sum(), rtol=1e-6)


def test_the_fingerprint_is_the_sha256_of_the_weights(softmax_folder: Path) -> None:
    digest = hashlib.sha256((softmax_folder / WEIGHTS).read_bytes()).hexdigest()
    assert load_clip(f"local-dir:{softmax_folder}").fingerprint == digest


def test_damaged_weights_are_refused_when_they_yield_nan(softmax_folder: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(softmax_folder, tmp_path / "broken"))
    state = load_file(broken / WEIGHTS)
    state["visual.proj"].fill_(float("nan"))
    save_file(state, broken / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ClipguardError, match="NaN"):
        load_clip(f"local-dir:{broken}").embed_images(photos(2))


def test_truncated_weights_are_refused_in_one_line(softmax_folder: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(softmax_folder, tmp_path / "broken"))
    (broken / WEIGHTS).write_bytes((broken / WEIGHTS).read_bytes()[:1000])
    assert "cannot be read as safetensors" in refusal(f"local-dir:{broken}")


def test_a_folder_of_pickled_weights_is_refused_with_a_way_to_convert(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("{}")
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"")
    text = refusal(f"local-dir:{tmp_path}")
    assert "open_clip_pytorch_model.bin is a pickle" in text
    assert "save_file" in text


@pytest.mark.parametrize(
    "config", ["", "{", "[]", "{}", '{"model_cfg": {}}', '{"model_cfg": {"text_cfg": 3}}']
)
def test_a_folder_with_a_damaged_config_is_refused(config: str, softmax_folder: Path, tmp_path: Path) -> None:
    shutil.copy(softmax_folder / WEIGHTS, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(config)
    assert CONFIG in refusal(f"local-dir:{tmp_path}")


def test_a_missing_folder_and_a_folder_without_config_are_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(f"local-dir:{tmp_path / 'none'}")
    assert f"has no {CONFIG}" in refusal(f"local-dir:{tmp_path}")


def test_bare_checkpoint_paths_are_refused(softmax_folder: Path) -> None:
    assert "bare path" in refusal(str(softmax_folder / WEIGHTS))
    assert "bare path" in refusal(str(softmax_folder))
    assert "bare path" in refusal("ViT-B-32", str(softmax_folder / WEIGHTS))


def test_unknown_names_and_tags_are_refused_with_the_choices() -> None:
    assert "local-dir:FOLDER" in refusal("ViT-B-33")
    assert "yfcc15m" in refusal("RN50", "laion2b_s34b_b79k")
    assert "hf-hub:ORG/NAME" in refusal("hf-hub:no such name")


@pytest.mark.parametrize("model", ["ViT-B-32", "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"])
def test_without_a_network_the_ways_out_are_named(model: str, cache: Path) -> None:
    text = refusal(model)
    for way in (
        "guide mini",
        "local-dir:FOLDER",
        "HF_HOME",
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    ):
        assert way in text


@pytest.mark.parametrize("hub", [(None, 503)], indirect=True)
def test_a_proxy_without_a_way_out_gets_one_request_and_is_not_retried(hub: Hub) -> None:
    assert "does not answer" in refusal("hf-hub:nobody/tiny")
    assert len(hub.requests) == 1


def test_a_hub_that_accepts_and_never_answers_is_given_up(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_at(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(loading, "PATIENCE", 0.3)
        assert "does not answer" in refusal("hf-hub:nobody/tiny")


@pytest.mark.parametrize("hub", [("sigmoid_folder", 200)], indirect=True)
def test_a_working_hub_is_downloaded_from_once_and_then_not_contacted_again(
    hub: Hub, sigmoid_folder: Path
) -> None:
    images = photos(2)
    first = load_clip(f"hf-hub:{REPOSITORY}")
    expected = load_clip(f"local-dir:{sigmoid_folder}")
    assert first.name == f"hf-hub:{REPOSITORY}"
    assert first.fingerprint == expected.fingerprint
    assert np.array_equal(first.embed_images(images), expected.embed_images(images))
    hub.requests.clear()
    load_clip(f"hf-hub:{REPOSITORY}")
    assert hub.requests == []


@pytest.mark.parametrize("hub", [("pickles_only", 200)], indirect=True)
def test_a_hub_repository_of_pickles_is_refused_and_the_pickle_is_not_fetched(hub: Hub) -> None:
    assert "pickled weights are never loaded" in refusal(f"hf-hub:{REPOSITORY}")
    assert not [path for _, path in hub.requests if path.endswith(".bin")]


@pytest.fixture
def pickles_only(softmax_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "pickles"
    folder.mkdir()
    shutil.copy(softmax_folder / CONFIG, folder)
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"never read")
    return folder


@pytest.mark.parametrize("hub", [("softmax_folder", 200)], indirect=True)
@pytest.mark.parametrize("file", ["", "pytorch_model.bin"])
def test_a_built_in_tag_loads_with_the_preprocessing_and_activation_of_the_tag(
    hub: Hub, file: str, softmax_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from open_clip import factory, pretrained

    hub.folder = Path(shutil.copytree(softmax_folder, tmp_path / "hub-files"))
    shutil.copy(softmax_folder / WEIGHTS, hub.folder / "pytorch_model.safetensors")
    tag = pretrained._pcfg(hf_hub=f"{REPOSITORY}/{file}", quick_gelu=True) | PREPROCESS
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny", {"some_tag": tag})
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny", model_config(sigmoid=False))
    ours = load_clip("tiny", "some_tag")
    theirs, preprocess = open_clip.create_model_from_pretrained("tiny", "some_tag", force_quick_gelu=True)
    images = photos(3)
    with torch.no_grad():
        batch = torch.stack([preprocess(Image.fromarray(image)) for image in images])
        expected = theirs.eval().encode_image(batch, normalize=True).numpy()
    np.testing.assert_allclose(ours.embed_images(images), expected, atol=1e-6)
    assert ours.name == "tiny/some_tag"


def test_every_built_in_tag_names_a_hub_repository_to_fetch_safetensors_from() -> None:
    from open_clip.pretrained import get_pretrained_cfg

    for model, tag in open_clip.list_pretrained():
        assert get_pretrained_cfg(model, tag)["hf_hub"].count("/") == 2, (model, tag)


def test_nothing_is_unpickled_while_a_model_is_loaded(
    softmax_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr(torch, "load", refuse)
    (trap := softmax_folder / "aaa.bin").write_bytes(b"")
    try:
        load_clip(f"local-dir:{softmax_folder}").embed_texts(["cat"])
    finally:
        trap.unlink()


def test_a_text_tower_of_another_package_is_refused_before_anything_is_fetched(
    softmax_folder: Path, tmp_path: Path, cache: Path
) -> None:
    if importlib.util.find_spec("transformers") is not None:
        pytest.skip("the package transformers is installed, so that its absence cannot be shown")
    folder = Path(shutil.copytree(softmax_folder, tmp_path / "foreign"))
    config = json.loads((folder / CONFIG).read_text())
    config["model_cfg"]["text_cfg"] = {"hf_model_name": "nobody/words", "hf_tokenizer_name": "nobody/words"}
    (folder / CONFIG).write_text(json.dumps(config))
    assert "pip install transformers" in refusal(f"local-dir:{folder}")
