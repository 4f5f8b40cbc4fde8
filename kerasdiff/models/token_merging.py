"""Token merging (Bolya & Hoffman 2023, "Token Merging for Fast Stable Diffusion", arXiv:2303.17604).

Each cell of 2 x 2 tokens has one destination. Of the others, the sources, those that are most similar to a destination
are averaged into it; attention then has fewer tokens, and each source gets back what its destination got.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

from keras import ops

from kerasdiff.models.token_order import num_cells

_ACTIVE: contextvars.ContextVar[tuple[float, Any] | None] = contextvars.ContextVar("token_merging", default=None)


@contextlib.contextmanager
def token_merging(ratio: float, order: Any) -> Iterator[None]:
    """Inside, self-attention at the finest level that has one merges a share of the tokens; 0 is none.

    `order`, (B, N), is what `token_order` gives.
    """
    token = _ACTIVE.set((ratio, order) if ratio else None)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def matching(tokens: Any, height: int, width: int) -> "Matching | None":
    """Which of the tokens (B * height * width, C) are merged; None if none are."""
    active = _ACTIVE.get()
    if active is None:
        return None
    ratio, order = active
    tokens = ops.reshape(tokens, (-1, height * width, tokens.shape[-1]))
    destinations, merged = num_cells(height, width), int(ratio * height * width)
    return Matching(tokens, order, destinations, merged) if destinations and merged else None


class Matching:
    """Sources and their destinations in tokens (B, N, C), by the cosine of the angle between them.

    `order` (b, N) is `token_order`; B is a multiple of b. Of the sources the `merged` most similar ones are merged.
    """

    def __init__(self, tokens: Any, order: Any, destinations: int, merged: int) -> None:
        batch, whole, _ = tokens.shape
        order = ops.cast(ops.concatenate([order] * (batch // order.shape[0]), axis=0), "int32")
        self._whole, self._merged = whole, min(merged, whole - destinations)
        self.length = whole - self._merged
        self._destinations, sources = order[:, :destinations], order[:, destinations:]
        exact = ops.cast(tokens, "float32")
        exact = exact * ops.rsqrt(ops.sum(ops.square(exact), axis=-1, keepdims=True) + 1e-12)
        looked_at = ops.transpose(_rows(exact, self._destinations), (0, 2, 1))
        similarity = ops.matmul(_rows(exact, sources), looked_at)
        # Not argmax: Keras's own has operations that OpenVINO does not read.
        best, nearest = ops.top_k(similarity, 1)
        ranks = ops.cast(ops.argsort(-best[..., 0], axis=-1), "int32")
        nearest = ops.cast(nearest[..., 0], "int32")
        gone, left = ranks[:, : self._merged], ranks[:, self._merged :]
        self._gone, self._left = _rows(sources, gone), _rows(sources, left)
        self._nearest = _rows(nearest, gone)
        # The place of each token in what was merged: what is left, then destinations; sources have their destination's.
        first = whole - destinations - self._merged
        count = ops.arange(self.length, dtype="int32")
        places = ops.concatenate([ops.tile(count[None], (batch, 1)), first + self._nearest], axis=1)
        tokens_there = ops.concatenate([self._left, self._destinations, self._gone], axis=1)
        self._places = _rows(places, ops.cast(ops.argsort(tokens_there, axis=-1), "int32"))

    def merge(self, tokens: Any) -> Any:
        """Tokens (B * N, C) -> (B * length, C): what is left, then destinations, each the mean with its sources."""
        width, dtype = tokens.shape[-1], tokens.dtype
        tokens = ops.reshape(tokens, (-1, self._whole, width))
        kept = _rows(tokens, self._destinations)
        targets = ops.one_hot(self._nearest, kept.shape[1], dtype=dtype)
        # Differences: equal tokens then stay exactly what they are.
        differences = _rows(tokens, self._gone) - _rows(kept, self._nearest)
        counts = 1 + ops.sum(ops.cast(targets, "float32"), axis=1)
        means = kept + ops.matmul(ops.transpose(targets, (0, 2, 1)), differences) / ops.cast(counts, dtype)[..., None]
        return ops.reshape(ops.concatenate([_rows(tokens, self._left), means], axis=1), (-1, width))

    def unmerge(self, tokens: Any) -> Any:
        """Tokens (B * length, C) -> (B * N, C), in their places."""
        width = tokens.shape[-1]
        return ops.reshape(_rows(ops.reshape(tokens, (-1, self.length, width)), self._places), (-1, width))


def _rows(x: Any, indices: Any) -> Any:
    """Of x (B, M) or (B, M, C) the rows of int32 indices (B, K), as one gather."""
    batch, length, *rest = x.shape
    flat = ops.reshape(x, (batch * length, *rest))
    return ops.take(flat, indices + length * ops.arange(batch, dtype="int32")[:, None], axis=0)
