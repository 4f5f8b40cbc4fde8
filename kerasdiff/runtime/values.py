"""The values of a network's parameters at one moment."""

from collections.abc import Iterable
from typing import Any


class Values(list[Any]):
    """Tensors in the order of the layer's weights; never changed, but replaced.

    Attributes:
        derived: what programs computed of these values alone, by program, so that it is computed once.
        key: says in any process which values these are; None if nothing does.
    """

    def __init__(self, tensors: Iterable[Any]) -> None:
        super().__init__(tensors)
        self.key: str | None = None
        self.derived: dict[str, list[Any]] = {}
