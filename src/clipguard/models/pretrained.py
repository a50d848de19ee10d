"""Transfer: a net starts from weights that were trained on other data, its head anew."""

from pathlib import Path
from typing import Any

from clipguard.errors import ClipguardError
from clipguard.models import weights
from clipguard.models.header import LONGEST_NAME
from clipguard.models.spec import Normalized
from clipguard.seeds import Seed


def take_body(model: Normalized, path: Path, seed: Seed) -> None:
    """Give a net of timm's the weights of a file, all but those of its head, which starts anew.

    Args:
        model: changed in place.
        path: safetensors of the same architecture, with any number of classes.
        seed: of the head's weights.

    Raises:
        ClipguardError: no net of timm's, unreadable weights, or those of another architecture.
    """
    network = model.network
    if not hasattr(network, "reset_classifier"):
        raise ClipguardError(f"{type(network).__name__} cannot start from {path}: name a net of timm")
    head = _fresh_head(network, seed)
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items() if name not in head}
    given = {name: value for name, value in weights.state(path).items() if name not in head}
    _, wrong = weights.fitting_prefix(expected, {name: tuple(value.shape) for name, value in given.items()})
    if wrong:
        raise ClipguardError(
            f"{path} holds another net: {len(wrong)} tensors missing, unknown or of another shape, "
            f"first {wrong[0][:LONGEST_NAME]!r}"
        )
    network.load_state_dict(given, strict=False)


def _fresh_head(network: Any, seed: Seed) -> set[str]:
    """Initialise the head of a net of timm's anew, and return the names of its weights."""
    with seed.torch_global():
        network.reset_classifier(network.num_classes)
    head = network.get_classifier()
    return {
        f"{place}.{name}"
        for place, module in network.named_modules()
        if module is head
        for name in module.state_dict()
    }
