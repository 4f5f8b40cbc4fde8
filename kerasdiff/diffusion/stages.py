"""The stages of one model, each in the precision that was chosen and, where its numbers overflow, in float32."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from kerasdiff.checkpoints.checkpoint import Checkpoint
from kerasdiff.diffusion.denoise_step import Denoise
from kerasdiff.diffusion.network import Network, Networks
from kerasdiff.diffusion.safety_stage import CheckSafety
from kerasdiff.diffusion.text_stage import EncodeText
from kerasdiff.diffusion.vae_stage import Decode, Encode
from kerasdiff.errors import NonFiniteError
from kerasdiff.runtime import tf_setup
from kerasdiff.runtime.compiled import Compiled, Traceable
from kerasdiff.runtime.precision import Execution
from kerasdiff.runtime.program_cache import ProgramCache

# Modules that traced functions come from: this one has all stages, and their networks are made there.
MADE_OF = (__name__, "kerasdiff.models.networks")


class _Compiled(Protocol):
    @property
    def compiled(self) -> tuple[Compiled, ...]: ...


S = TypeVar("S", bound=_Compiled)
T = TypeVar("T")


class Checked(Generic[S]):
    """A stage whose results are looked at: where they are not finite in half precision, it goes on in float32.

    Args:
        name: of the stage, for messages.
        make: the stage of a network.
        network: loads the network when it is needed.
    """

    def __init__(self, name: str, make: Callable[[Traceable], S], network: Callable[[], Network]) -> None:
        self.name, self._make, self._network = name, make, network
        self._overflowed = False

    @functools.cached_property
    def usual(self) -> S:
        """The stage in the precision that was chosen."""
        return self._make(self._network())

    @functools.cached_property
    def _twin(self) -> S:
        return self._make(self._network().in_float32())

    @property
    def now(self) -> S:
        """The stage that runs next."""
        return self._twin if self._overflowed else self.usual

    @property
    def compiled(self) -> tuple[Compiled, ...]:
        """What the stage consists of, as far as it was needed."""
        made = [self.__dict__[name].compiled for name in ("usual", "_twin") if name in self.__dict__]
        return tuple(one for each in made for one in each)

    def run(self, function: Callable[[S], T], finite: Callable[[T], bool]) -> T:
        """`function(stage)`, and once more in float32 if what it gives is not finite.

        Raises:
            NonFiniteError: nor is that.
        """
        if not self._overflowed:
            result = function(self.usual)
            if finite(result):
                return result
            precision = self._network().precision
            if precision == "float32":
                raise NonFiniteError(self._problem("float32"))
            warnings.warn(
                f"the {self.name} gives numbers that are not finite in {precision}; it runs in float32 from now on",
                stacklevel=2,
            )
            self._overflowed = True
        result = function(self._twin)
        if not finite(result):
            raise NonFiniteError(self._problem("float32, which was tried after half precision"))
        return result

    def _problem(self, precision: str) -> str:
        return (
            f"the {self.name} gives numbers that are not finite in {precision}; a smaller guidance_scale may help, "
            "or the checkpoint is damaged"
        )


class Stages:
    """All stages of a model; a network is loaded when its stage first runs, but for those that every image needs.

    Args:
        model: the networks' configurations and weights.
        execution: device, precision and compiler.
        programs: where traced programs are kept.
    """

    def __init__(self, model: Checkpoint, execution: Execution, programs: ProgramCache) -> None:
        config, jit = model.config, execution.jit_compile
        self._execution = execution
        self.networks = Networks(functools.partial(Network, model=model, execution=execution, programs=programs))

        def network(name: str) -> Callable[[], Network]:
            return functools.partial(self.networks.network, name)

        self.text = Checked(
            "text encoder",
            lambda runs: EncodeText(model.tokenizer, config.text_encoder, runs, jit, programs),
            network("text_encoder"),
        )
        self.denoise = Checked("U-Net", lambda runs: Denoise(runs, jit, programs), network("unet"))
        self.decode = Checked(
            "decoder", lambda runs: Decode(runs, config.latent_factor, jit, programs), network("decoder")
        )
        self.encode = Checked(
            "encoder", lambda runs: Encode(runs, config.latent_factor, jit, programs), network("encoder")
        )
        self.check_safety = None
        if config.safety_checker is not None:
            self.check_safety = CheckSafety(network("safety_checker"), config.safety_checker, jit, programs)

    @property
    def compiled(self) -> list[Compiled]:
        """Every stage's."""
        always = (self.text, self.denoise, self.decode, self.encode)
        stages = always if self.check_safety is None else (*always, self.check_safety)
        return [one for stage in stages for one in stage.compiled]

    @property
    def weight_bytes(self) -> int:
        """What the networks that are loaded take."""
        return sum(network.nbytes for network in self.networks.made.values())

    def first_run_bytes(self, network: str) -> int:
        """What a program of a network takes for itself when it first runs: weights in oneDNN's order.

        Where they are frozen it keeps them; measured, see docs/reliability.md.
        """
        if self._execution.device != "CPU" or self._execution.jit_compile:
            return 0
        weights = self.networks.network(network).nbytes
        return int(weights * (1.35 if tf_setup.is_inference_only() else 0.35))

    def release(self, but: str | None = None) -> bool:
        """Lets go of weights and programs, which come back when they are needed; whether there were any.

        Args:
            but: the network that is needed now.
        """
        found = [network.release() for name, network in self.networks.made.items() if name != but]
        if any(found):
            for compiled in self.compiled:
                compiled.release()
        return any(found)
