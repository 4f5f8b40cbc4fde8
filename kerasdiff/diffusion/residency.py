"""Which networks of a model are in memory at once: where they do not all fit, stages give way to each other.

That is decided before anything runs, from what networks and stages take and what is free. A network that left is
loaded, and its program prepared, when its stage comes again; images are the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from kerasdiff.diffusion.memory_model import UNetCost
from kerasdiff.diffusion.network import Network, Networks
from kerasdiff.runtime import constant_files, memory, tf_setup
from kerasdiff.runtime.batch_sizer import SHARE, MicroBatch, StageCost
from kerasdiff.runtime.compiled import Compiled
from kerasdiff.runtime.precision import Execution

_LOG = logging.getLogger("kerasdiff")
# In this order networks leave: those that come back with the next text, then what steers steps, and then those that
# each image needs.
_FIRST, _LAST = ("safety_checker", "text_encoder", "text_encoder_2"), ("encoder", "decoder", "unet")
# What else a program takes of the bytes of its weights when it first runs, and keeps where it has its own copy of them;
# measured, see docs/reliability.md. OpenVINO copies the largest networks piece by piece.
_WORKING, _KEEPING, _KEEPING_LARGE, _LARGE = 0.35, 1.35, 1.1, 2 * 10**9
_WORDS = {"unet": "U-Net"}
Cost = TypeVar("Cost", bound=StageCost)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What leaves before a network's stage runs, and the bytes of those that are in memory then."""

    leaving: Mapping[str, tuple[str, ...]]
    held: Mapping[str, int]

    @property
    def sentences(self) -> tuple[str, ...]:
        """Such as "the text encoders leave before the U-Net"; none if all stay."""
        return tuple(
            f"the {_listed(gone)} {'leave' if len(gone) > 1 else 'leaves'} before the {_word(stage)}"
            for stage, gone in self.leaving.items()
            if gone
        )


def schedule(
    sizes: Mapping[str, int], needs: Mapping[str, int], room: int, beside: Mapping[str, Collection[str]] | None = None
) -> Schedule:
    """A schedule for networks of these bytes whose stages, in the order in which they run, `need` so many besides.

    Those that are `beside` a stage's network run in turns with it, and have no stage of their own.
    """
    here: dict[str, int] = {}
    leaving: dict[str, tuple[str, ...]] = dict.fromkeys(needs, ())
    held = dict.fromkeys(needs, 0)
    others = (*_FIRST, *(name for name in sizes if name not in needs), *_LAST)
    for name in (*needs, *needs):  # the second image finds what the first one left
        own = {name, *(beside or {}).get(name, ())}
        here |= {one: sizes[one] for one in own}
        gone: list[str] = []
        for other in others:
            if sum(here.values()) + needs[name] > room and other in here and other not in own:
                del here[other]
                gone.append(other)
        for other in list(gone[:-1]):  # what made too little room may as well stay
            if sum(here.values()) + sizes[other] + needs[name] <= room:
                here[other] = sizes[other]
                gone.remove(other)
        leaving[name] = tuple(dict.fromkeys((*leaving[name], *gone)))
        held[name] = max(held[name], sum(here.values()))
    return Schedule(leaving, held)


class Steering(Protocol):
    """A network of its own that steers a model's steps; it may consist of several."""

    @property
    def members(self) -> Sequence[Network]:
        """What it consists of."""

    @property
    def whole(self) -> Iterable[Compiled]:
        """The functions that keep all weights of a member."""

    def release(self) -> bool:
        """Unloads weights and programs; whether there were any."""


class Residency:
    """The networks of one model in memory, and those that steer it.

    `compiled` gives all functions of its stages that were needed so far, `steering` what steers it, by name.
    """

    def __init__(
        self,
        networks: Networks,
        execution: Execution,
        compiled: Callable[[], Iterable[Compiled]],
        steering: Callable[[], Mapping[str, Steering]],
    ) -> None:
        self._networks, self._execution, self._compiled, self._steering = networks, execution, compiled, steering
        self._schedule = Schedule({}, {})

    def fits_together(self, names: Iterable[str]) -> bool:
        """Whether some networks are expected to be in memory at once without taking most of what is free."""
        return sum(map(self._size, names)) <= SHARE * memory.free()

    def planned(self, costs: Iterable[StageCost], free: int) -> Schedule:
        """How stages would share what is `free`, besides what is in memory already, for one image at a time."""
        costs = list(costs)
        found = self._planned(costs, free)
        if any(found.leaving.values()):  # what only other requests use leaves first
            found = self._planned(costs, free + sum(map(self.held, self._unused(costs))))
        return found

    def _planned(self, costs: Sequence[StageCost], free: int) -> Schedule:
        needs, beside = ({cost.network: getattr(cost, name) for cost in costs} for name in ("work", "beside"))
        sizes = {name: self._size(name) for name in (*needs, *itertools.chain(*beside.values()))}
        return schedule(sizes, needs, int(SHARE * (free + sum(map(self.held, sizes)))), beside)

    def _unused(self, costs: Iterable[StageCost]) -> list[str]:
        """What steers a model, and not these stages."""
        used = {*itertools.chain(*(cost.beside for cost in costs))}
        return [name for name in self._steering() if name not in used]

    def decide(self, costs: Iterable[StageCost], free: int) -> None:
        """From now on stages share memory as `planned`; programs of other sizes go where there is no room for more."""
        costs = list(costs)
        decided = self.planned(costs, free)
        short = [one for one in costs if isinstance(one, UNetCost) and one.need(MicroBatch()) > SHARE * free]
        if short or any(self._planned(costs, free).leaving.values()):
            for name in self._unused(costs):
                self.release(name)
        for cost in short:
            self._release_programs(cost)
        if decided.sentences and decided.sentences != self._schedule.sentences:
            told = "; ".join(decided.sentences)
            _LOG.warning("not all networks fit into memory at once (%.1f GB are free): %s", free / 1e9, told)
        self._schedule = decided

    def _release_programs(self, cost: UNetCost) -> None:
        """Makes room for a program that is still to be prepared: each keeps a copy of the weights."""
        if self._programs(cost.network) and cost.expected(MicroBatch()).state != "ready":
            for compiled in self._compiled():
                if getattr(compiled.network, "name", None) == cost.network:
                    compiled.release()
            steering = self._steering()
            for compiled in itertools.chain(*(steering[name].whole for name in cost.beside)):
                compiled.release()

    @property
    def gives_way(self) -> bool:
        """Whether any network leaves before another one comes."""
        return any(self._schedule.leaving.values())

    def enter(self, name: str) -> None:
        """The stage of a network is about to run: what has to leave does so, and what is large keeps weights alone."""
        for other in self._schedule.leaving.get(name, ()):
            self.release(other)
        if self.gives_way or self._has_large:
            for compiled in self._compiled():
                if getattr(compiled.network, "name", name) != name:
                    compiled.idle()

    def sparing(self) -> contextlib.AbstractContextManager[None]:
        """For the run of a text encoder: beside a large network, pages of its mapped matrices go once they are read."""
        return constant_files.given_back() if self._has_large else contextlib.nullcontext()

    @property
    def _has_large(self) -> bool:
        return any(network.weight_bytes >= _LARGE for network in self._networks.known.values())

    def release(self, name: str) -> bool:
        """Unloads a network and its programs; whether it was there."""
        steering = self._steering()
        if name in steering:
            return steering[name].release()
        released = self._networks.network(name).release()
        if released:
            for compiled in self._compiled():
                if getattr(compiled.network, "name", None) == name:
                    compiled.release()
        return released

    def making_room(self, cost: Cost, shared: Schedule | None = None) -> Cost:
        """A cost that knows what will leave before."""
        leaving = (self._schedule if shared is None else shared).leaving.get(cost.network, ())
        bytes_ = sum(map(self.held, leaving))
        return dataclasses.replace(cost, leaving=bytes_) if bytes_ else cost

    def besides_kept(self, cost: UNetCost) -> UNetCost:
        """A cost without what a program keeps of weights, and without weights."""
        kept = self._kept(self._networks.network(cost.network))
        return dataclasses.replace(cost, first_run_bytes=0 if kept else cost.first_run_bytes, lacking=0)

    def held(self, name: str) -> int:
        """What a network takes at the moment: its weights, and what its programs keep of them."""
        known = [network for network in self._members(name) if network.is_known]
        return sum(network.nbytes + self._programs(name, network) * self._kept(network) for network in known)

    def lacking(self, name: str) -> int:
        """What a network will take in memory that it does not take yet."""
        return max(0, self._size(name) - self.held(name))

    def _members(self, name: str) -> Sequence[Network]:
        """What goes by a name: a network of the model's, or those of what steers it."""
        steering = self._steering()
        return steering[name].members if name in steering else (self._networks.network(name),)

    def _programs(self, name: str, member: Network | None = None) -> int:
        """How many programs of a network, or of a member, can run at once; each keeps a copy of its weights."""
        steering, network = self._steering(), name if member is None else member.name
        compiled = steering[name].whole if name in steering else self._compiled()
        return sum(each.programs for each in compiled if getattr(each.network, "name", None) == network)

    def staying(self, name: str) -> int:
        """What networks take at the moment that stay while the stage of one of them runs."""
        leaving = self._schedule.leaving.get(name, ())
        return sum(self.held(other) for other in (*self._networks.known, *self._steering()) if other not in leaving)

    def first_run_bytes(self, name: str) -> int:
        """What a program of a network takes for itself when it first runs: weights in oneDNN's order."""
        if self._execution.device != "CPU" or self._execution.jit_compile:
            return 0
        network = self._networks.network(name)
        return self._kept(network) or int(network.weight_bytes * _WORKING)

    def pending_bytes(self, name: str) -> int:
        """What is still to be taken so before a network runs."""
        return 0 if self._programs(name) else self.first_run_bytes(name)

    def _size(self, name: str) -> int:
        """What a network takes in memory once it has run."""
        return sum(
            (0 if network.backend.READS_LATE else network.weight_bytes) + self._kept(network)
            for network in self._members(name)
        )

    def _kept(self, network: Network) -> int:
        """What a program of a network keeps: frozen weights as oneDNN and OpenVINO lay them out."""
        lays_out = self._execution.backend == "openvino"
        frozen = self._execution.backend == "tensorflow" and tf_setup.is_inference_only()
        if self._execution.device != "CPU" or self._execution.jit_compile or not (lays_out or frozen):
            return 0
        large = lays_out and network.weight_bytes >= _LARGE
        return int(network.weight_bytes * (_KEEPING_LARGE if large else _KEEPING))


def _word(name: str) -> str:
    return _WORDS.get(name, name if " " in name else name.replace("_", " "))


def _listed(names: Iterable[str]) -> str:
    """Such as "text encoders and decoder"."""
    words = [_word(name) for name in names]
    if {"text encoder", "text encoder 2"} <= {*words}:
        words = ["text encoders", *(word for word in words if not word.startswith("text encoder"))]
    return " and ".join(words)
