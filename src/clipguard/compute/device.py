"""How arrays become tensors and tensors arrays: the one place that decides where they live."""

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor


def tensor(array: Shaped[np.ndarray, "..."]) -> Tensor:
    """Return the array as a tensor of the processor that shares its memory."""
    return torch.from_numpy(array)


def array(values: Tensor) -> Shaped[np.ndarray, "..."]:
    """Return the values of a tensor, wherever it lives."""
    on_processor: np.ndarray = values.detach().cpu().numpy()
    return on_processor
