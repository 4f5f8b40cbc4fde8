"""What is said of each argument of a request: how it is given, what it may be, and its help."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

Kind = Literal[
    "string",
    "strings",
    "integer",
    "integers",
    "number",
    "numbers",
    "weights",
    "boolean",
    "choice",
    "options",
    "images",
    "path",
    "loras",
    "embeddings",
    "hires",
    "upscaler",
    "pair",
    "controls",
    "image_prompts",
]


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument of a request: --help prints its `help`, and the API page its `details` besides.

    A `default` of None leaves it to the model. A bound of None is none, or one that depends on the model. `per_image`
    is the field of `Request` that has one value of it per image; "" where one holds for all. `flag` is what the command
    line calls it, if that is another word.
    """

    kind: Kind
    help: str
    details: str = ""
    default: Any = None
    bounds: tuple[Any, Any] = (None, None)
    choices: tuple[str, ...] = ()
    per_image: str = ""
    flag: str = ""

    @property
    def description(self) -> str:
        """The help with its details."""
        return f"{self.help} {self.details}".strip()
