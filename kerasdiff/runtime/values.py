"""The values of a network's parameters at one moment."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any


class Values(list[Any]):
    """Tensors in the order of the layer's weights; never changed, but replaced.

    Attributes:
        derived: what programs computed of these values alone, by program, so that it is computed once.
        key: says in any process which values these are; None if nothing does.
        base: those that these are but for the ones of `changed`, by index; None if they are nothing but themselves.
    """

    def __init__(self, tensors: Iterable[Any], base: Values | None = None, changed: Collection[int] = ()) -> None:
        super().__init__(tensors)
        self.key: str | None = None
        self.derived: dict[str, list[Any]] = {}
        self.base, self.changed = base, frozenset(changed)
