"""clip.loading: a guide's folder is looked at before open_clip builds what it says."""

import json

import pytest

from clipguard.clip.loading import CONFIG, WEIGHTS, check_weights, read_config
from clipguard.errors import ClipguardError
from hostile.weight_files import GUIDES, TINY


def refusal(tmp_path, config: bytes) -> str:
    """Return the one line with which a config is refused."""
    (tmp_path / CONFIG).write_bytes(config)
    with pytest.raises(ClipguardError) as caught:
        read_config("mine", tmp_path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("10**9 layers", "layers = 1000000000, which is more than 256"),
        ("a number of 400 digits", "vocab_size = 10000"),
        ("an infinite number", "mlp_ratio = inf"),
        ("images of 100,000 pixels a side", "image_size"),
        ("weights from elsewhere", "other weights than those beside it"),
        ("pretrained weights from elsewhere", "other weights than those beside it"),
        ("code of a stranger", "wants code to run (trust_remote_code)"),
        ("a config nested too deep", "too deep"),
        ("a config of 20 MB", "more than the limit"),
    ],
)
def test_a_config_that_claims_too_much_is_refused_with_the_reason(tmp_path, what, reason):
    assert reason in refusal(tmp_path, GUIDES[what])


def test_a_sound_config_is_given_back(tmp_path):
    (tmp_path / CONFIG).write_text(json.dumps({"model_cfg": TINY}))
    assert read_config("mine", tmp_path) == TINY


def test_a_model_larger_than_its_weights_is_refused(tmp_path):
    from safetensors.torch import save_file
    from torch import zeros

    (tmp_path / CONFIG).write_text(json.dumps({"model_cfg": TINY}))
    save_file({"w": zeros(3)}, tmp_path / WEIGHTS)
    with pytest.raises(ClipguardError, match=r"describes \d+ weights, .* holds 3"):
        check_weights("mine", f"local-dir:{tmp_path}", tmp_path / WEIGHTS)
