"""What all stages of a model have in common: a network, compiled functions of it, and what to do when they fail."""

import dataclasses
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

from kerasdiff.errors import NonFiniteError
from kerasdiff.runtime.compiled import Compiled, Traceable
from kerasdiff.runtime.program_cache import ProgramCache


class FiniteCheck:
    """Whether the numbers that a stage gave are finite; the stage itself says so."""

    finite = False


class Overflow:
    """Whether numbers in half precision were not finite; stages whose numbers come together share it."""

    happened = False


@dataclasses.dataclass(frozen=True)
class Expected:
    """A program that is going to be needed."""

    compiled: Compiled
    shapes: tuple[Any, ...]  # of its arguments

    @property
    def state(self) -> str:
        """As `Compiled.state`: "ready", "kept" or "new"."""
        return self.compiled.state(self.shapes)

    def keep(self) -> None:
        """As `Compiled.keep`."""
        self.compiled.keep(self.shapes)

    def prefetch(self) -> None:
        """As `Compiled.prefetch`."""
        self.compiled.prefetch(self.shapes)


class Stage:
    """A network and its compiled functions, in the precision that was chosen until its numbers overflow."""

    name = "network"  # for messages

    def __init__(
        self,
        network: Traceable,
        jit_compile: bool,
        programs: ProgramCache | None = None,
        overflow: Overflow | None = None,
    ) -> None:
        self._network, self._jit_compile, self._programs = network, jit_compile, programs
        self._compiled: dict[tuple[str, bool], Compiled] = {}
        self.overflow = overflow or Overflow()

    @property
    def compiled(self) -> tuple[Compiled, ...]:
        """The functions that were needed so far."""
        return tuple(self._compiled.values())

    def function(self, name: str, traced: Callable[..., Any], lasting: Collection[int] = ()) -> Compiled:
        """A function `traced(layer, *tensors)`, in the precision that is in use now; `lasting` as in `Compiled`."""
        key = name, self.overflow.happened
        if key not in self._compiled:
            network = self._network.in_float32() if self.overflow.happened else self._network
            made = Compiled(name, traced, network, self._jit_compile, self._programs, lasting)
            self._compiled.setdefault(key, made)  # another thread may have been faster
        return self._compiled[key]

    def checks(self) -> Iterator[FiniteCheck]:
        """Runs of the stage until one is finite: a second one, in float32, if the first one overflowed.

        The loop's body runs the stage and says whether its numbers are; NonFiniteError if not, in float32 either.
        """
        while True:
            overflowed, check = self.overflow.happened, FiniteCheck()
            yield check
            if check.finite:
                return
            if overflowed or self._network.precision == "float32":
                tried = "float32, which was tried after half precision" if overflowed else "float32"
                raise NonFiniteError(
                    f"the {self.name} gives numbers that are not finite in {tried}; a smaller guidance_scale may help, "
                    "or the checkpoint is damaged"
                )
            warnings.warn(
                f"the {self.name} gives numbers that are not finite in {self._network.precision}; it runs in float32 "
                "from now on",
                stacklevel=2,
            )
            self.overflow.happened = True


def apply(network: Any, inputs: Any) -> Any:
    """What a network gives, in float32; to be traced."""
    from keras import ops

    return ops.cast(network(inputs), "float32")


@dataclasses.dataclass(frozen=True)
class EncodeText:
    """Ids to embeddings in float32; to be traced.

    `inputs` are the names of what comes behind the ids. With "ends" a pooled embedding is a second result.
    """

    skip: int = 0
    inputs: tuple[str, ...] = ()

    def __call__(self, network: Any, ids: Any, *others: Any) -> Any:
        from keras import ops

        options = dict(zip(self.inputs, others, strict=True))
        found = network(ids, **options, **({"skip": self.skip} if self.skip else {}))
        if isinstance(found, tuple):
            return tuple(ops.cast(each, "float32") for each in found)
        return ops.cast(found, "float32")
