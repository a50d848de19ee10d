"""BatchNorm's running statistics, taken anew: after a few steps they still are those of other weights."""

import copy
from typing import Final

import numpy as np
import torch
from jaxtyping import Int64
from torch.nn.modules.batchnorm import _BatchNorm

from clipguard.compute.batches import batches_on
from clipguard.compute.device import computing_on, device_for
from clipguard.models.spec import Normalized
from clipguard.types import Rows

_BATCH: Final = 128


def with_own_statistics(model: Normalized, images: Rows, rows: Int64[np.ndarray, "m"]) -> Normalized:
    """Return a copy whose running statistics are the mean over batches of these images; other layers rest."""
    anew, device = copy.deepcopy(model).eval(), device_for(model)
    norms = [layer for layer in anew.modules() if isinstance(layer, _BatchNorm)]
    usual = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # all batches count alike
        layer.train()
    if norms:
        parts = np.array_split(rows, -(-len(rows) // _BATCH))
        with computing_on(device), torch.no_grad():
            for batch in batches_on(device, images)(parts):
                anew(batch.permute(0, 3, 1, 2))
    for layer, momentum in zip(norms, usual, strict=True):
        layer.momentum = momentum
    return anew.eval()
