"""What a text is encoded to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class TextEmbedding(NamedTuple):
    """What a U-Net reads of a text, float32: one row per token, and with some models one of the whole text."""

    context: np.ndarray  # (T, width)
    pooled: np.ndarray | None = None  # (P,)

    def towards(self, other: TextEmbedding, share: float) -> TextEmbedding:
        """What lies between it and another one; each of them, to the bit, at 0 and at 1."""

        def between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            return first * np.float32(1 - share) + second * np.float32(share)

        pooled = None
        if self.pooled is not None and other.pooled is not None:
            pooled = between(self.pooled, other.pooled)
        return TextEmbedding(between(self.context, other.context), pooled)


def side_by_side(parts: Sequence[TextEmbedding]) -> TextEmbedding:
    """What several encoders make of a text, of which at most one gives a pooled embedding."""
    context = parts[0].context if len(parts) == 1 else np.concatenate([part.context for part in parts], axis=-1)
    return TextEmbedding(context, next((part.pooled for part in parts if part.pooled is not None), None))
