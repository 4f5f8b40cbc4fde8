"""Attention to pictures beside that to the text (Ye et al. 2023, IP-Adapter, arXiv:2308.06721)."""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from keras import ops

from kerasdiff.models.layers import attend

# Of each attention to the text, for each adapter: keys and values (rows, tokens, width), and scales (rows,).
PictureTokens = Mapping[str, Sequence[tuple[Any, Any, Any]]]
_TOKENS: contextvars.ContextVar[PictureTokens | None] = contextvars.ContextVar("tokens", default=None)


@contextlib.contextmanager
def image_prompts(tokens: PictureTokens) -> Iterator[None]:
    """Inside, attentions to the text attend to pictures as well, by their names in `blocks.cross_attentions`."""
    token = _TOKENS.set(tokens)
    try:
        yield
    finally:
        _TOKENS.reset(token)


def attend_to_pictures(place: str, queries, mixed, num_heads: int):
    """What an attention has `mixed` of a text, with what the same queries (B, T, C) find in pictures."""
    for keys, values, scales in (_TOKENS.get() or {}).get(place, ()):
        found = attend(queries, ops.cast(keys, queries.dtype), ops.cast(values, queries.dtype), num_heads)
        mixed = mixed + ops.cast(scales, mixed.dtype)[:, None, None] * found
    return mixed
