"""Batched logits and embeddings: one code path for arrays in memory and for sources of any size."""

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from clipguard.compute.device import array, tensor
from clipguard.errors import ClipguardError
from clipguard.models.features import head_of, inputs_of
from clipguard.models.spec import Normalized
from clipguard.types import Images, Rows


def thread_count() -> int:
    """Return how many threads of the processor compute; results depend on their number."""
    return torch.get_num_threads()


def planes(images: Images) -> UInt8[Tensor, "n 3 h w"]:
    """Return images as a model takes them."""
    # A copy, since torch warns of arrays that cannot be written.
    return tensor(np.array(images)).permute(0, 3, 1, 2)


def classifier_logits(model: Normalized, images: Rows, batch_size: int = 250) -> Float32[np.ndarray, "n k"]:
    """Return the model's logits of all images, in evaluation mode."""
    model.eval()
    device = model.mean.device
    out = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = planes(images[start : start + batch_size]).to(device)
            out.append(array(model(batch).float()))
    return np.concatenate(out)


def features(
    model: Normalized, images: Rows, rows: Int64[np.ndarray, "m"], batch_size: int = 250
) -> Float32[np.ndarray, "m d"]:
    """Return what the model's head is given of the images of `rows`, in evaluation mode.

    A model without a head gives its logits instead; `models.features.head_of` tells which it is.

    Raises:
        ClipguardError: NaN or Inf is among them.
    """
    head = head_of(model, planes(images[:1]))
    starts = range(0, len(rows), batch_size)
    batches = (images[rows[start : start + batch_size]] for start in starts)
    if head is None:
        values = [classifier_logits(model, batch) for batch in batches]
    else:
        values = []
        with inputs_of(head) as inputs:
            for batch in batches:
                classifier_logits(model, batch)
                values += [array(given.float()) for given in inputs]
                inputs.clear()
    result: Float32[np.ndarray, "m d"] = np.concatenate(values)
    if not np.isfinite(result).all():
        raise ClipguardError("the model's last layer is given NaN or Inf for some images: give another model")
    return result
