"""The pickles in PyTorch's files, read as data: of the language of pickles, only what a file of tensors needs.

Nothing is called, and nothing is imported (`torch_objects.py`). An operation that is not in the table here is an error.
Whatever is read is bounded, and no container is walked through, so that neither depth nor sharing costs anything.
"""

from __future__ import annotations

import collections
import re
import struct
from collections.abc import Callable
from typing import Any

from kerasdiff.runtime.torch_objects import (
    CALLS,
    INERT,
    PARAMETERS,
    STORAGES,
    DamagedFileError,
    ForeignPickleError,
    InertValue,
    ModuleState,
    Named,
    Storage,
    fill,
    named,
)

MOST_BYTES = 16 * 2**20
# A checkpoint with optimizer and a copy of its weights has about 200,000.
_MOST_OPERATIONS = 500_000
_LONGEST_NAME = 200


def unpickle(data: Any, start: int, storage: Callable[[str, str, int, int], Storage]) -> tuple[Any, int]:
    """What a pickle of protocol 2 in `data` says, and where it ends.

    Values are of plain types and those of `torch_objects`. `storage` gives a storage of its key, type, bytes of a
    number, and count.

    Raises:
        DamagedFileError, ForeignPickleError: it cannot be read so.
    """
    return _Reader(data, start, storage).read()


class _Reader:
    def __init__(self, data: Any, start: int, storage: Callable[[str, str, int, int], Storage]) -> None:
        self._data, self._at, self._end = data, start, min(len(data), start + MOST_BYTES)
        self._storage = storage
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def read(self) -> tuple[Any, int]:
        head = self._take(2)
        if head[:1] != b"\x80":
            raise DamagedFileError("a pickle does not begin as one")
        if head != b"\x80\x02":
            raise ForeignPickleError(f"it was saved with pickle protocol {head[1]}, and PyTorch's own is 2")
        for _ in range(_MOST_OPERATIONS):
            code = self._take(1)
            if code == b".":
                value = self._pop()
                if self._stack or self._marks:
                    raise DamagedFileError("a pickle ends with something left over")
                return value, self._at
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise ForeignPickleError(f"it has the operation {code!r}, which a file of tensors does not need")
            operation(self)
        raise DamagedFileError(f"a pickle has more than {_MOST_OPERATIONS} operations")

    def _take(self, count: int) -> bytes:
        begin, self._at = self._at, self._at + count
        if self._at > self._end:
            raise DamagedFileError("a pickle breaks off, or is larger than any description of tensors")
        return self._data[begin : self._at]

    def _unpack(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _pop(self) -> Any:
        self._check_depth(1)
        return self._stack.pop()

    def _top(self) -> Any:
        self._check_depth(1)
        return self._stack[-1]

    def _check_depth(self, count: int) -> None:
        if len(self._stack) - (self._marks[-1] if self._marks else 0) < count:
            raise DamagedFileError("a pickle takes a value that is not there")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop_marked(self) -> list[Any]:
        if not self._marks:
            raise DamagedFileError("a pickle has no beginning of what it collects")
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    # What pickles do.

    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    def _put(self, form: str) -> None:
        self._memo[self._unpack(form)] = self._top()

    def _get(self, form: str) -> None:
        number = self._unpack(form)
        if number not in self._memo:
            raise DamagedFileError("a pickle remembers what was never there")
        self._push(self._memo[number])

    def _tuple(self, count: int) -> None:
        self._check_depth(count)
        values = tuple(self._stack[-count:])
        self._stack[-count:] = [values]

    def _text(self, form: str) -> None:
        raw = self._take(self._unpack(form))
        try:
            self._push(raw.decode())
        except UnicodeDecodeError:
            if form == "<I":
                raise DamagedFileError("a text is not UTF-8") from None
            self._push(InertValue())  # of Python 2, whose texts may be any bytes

    def _long(self) -> None:
        count = self._unpack("B")
        if count > 8:
            raise DamagedFileError(f"a number of {count} bytes")
        self._push(int.from_bytes(self._take(count), "little", signed=True))

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is list:
            target += values
        elif type(target) is not InertValue:
            raise DamagedFileError("a value is appended to what is no list")

    def _set(self, values: list[Any]) -> None:
        target = self._top()
        if len(values) % 2:
            raise DamagedFileError("a key has no value")
        if type(target) in (dict, collections.OrderedDict):
            fill(target, zip(values[::2], values[1::2], strict=True))
        elif type(target) is not InertValue:
            raise DamagedFileError("an item is set in what is no mapping")

    def _setitem(self) -> None:
        value = self._pop()
        self._set([self._pop(), value])

    def _global(self) -> None:
        start = self._at
        text = self._data[start : min(self._end, start + 2 * _LONGEST_NAME)]
        module, first, rest = text.partition(b"\n")
        name, second, _ = rest.partition(b"\n")
        if not (first and second):
            raise DamagedFileError("a name breaks off")
        self._at += len(module) + len(name) + 2
        path = b".".join((module, name))
        if not re.fullmatch(rb"[\w.]+", path):
            raise DamagedFileError("a name that is none")
        self._push(named(path.decode("ascii")))

    def _reduce(self) -> None:
        arguments, called = self._pop(), self._pop()
        if type(called) is not Named or type(arguments) is not tuple:
            raise DamagedFileError("something is called that has no name")
        if called.path in INERT:
            self._push(InertValue())
        elif called.path in CALLS:
            self._push(CALLS[called.path](arguments))
        else:
            raise DamagedFileError(f"{called.path} is called")

    def _newobj(self) -> None:
        arguments, made = self._pop(), self._pop()
        if type(made) is not Named or type(arguments) is not tuple:
            raise DamagedFileError("an object is made of what is no class")
        if made.path == PARAMETERS and not arguments:
            self._push(ModuleState())
        elif made.path in INERT:
            self._push(InertValue())
        else:
            raise DamagedFileError(f"an object of {made.path} is made")

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if type(target) is ModuleState:
            found: Any = state.get("_parameters") if type(state) is dict else None
            if type(found) not in (dict, collections.OrderedDict):
                raise DamagedFileError(f"a {PARAMETERS} has no parameters")
            target.parameters = found
        elif type(target) not in (InertValue, collections.OrderedDict):
            raise DamagedFileError("a state is given to what has none")

    def _persistent(self) -> None:
        found = self._pop()
        if type(found) is not tuple or not found:
            raise DamagedFileError("a storage is described wrongly")
        if found[0] == "module" and type(found[0]) is str:
            raise ForeignPickleError("it is a whole model with its code, and not only its tensors")
        # In the older form, a last value says whether it is a part of another one, as no PyTorch since 0.4 writes it.
        if len(found) == 6 and found[5] is None:
            found = found[:5]
        if len(found) != 5 or [type(part) for part in found] != [str, Named, str, str, int] or found[0] != "storage":
            raise DamagedFileError("a storage is described wrongly")
        _, kind, key, _, count = found
        if kind.path not in STORAGES or not 0 <= count < 2**63:
            raise DamagedFileError("a storage is described wrongly")
        self._push(self._storage(key, *STORAGES[kind.path], count))


_OPERATIONS: dict[bytes, Callable[[_Reader], None]] = {
    b"(": _Reader._mark,
    b"c": _Reader._global,
    b"R": _Reader._reduce,
    b"\x81": _Reader._newobj,
    b"b": _Reader._build,
    b"Q": _Reader._persistent,
    b"q": lambda reader: reader._put("B"),
    b"r": lambda reader: reader._put("<I"),
    b"h": lambda reader: reader._get("B"),
    b"j": lambda reader: reader._get("<I"),
    b"}": lambda reader: reader._push({}),
    b"]": lambda reader: reader._push([]),
    b")": lambda reader: reader._push(()),
    b"t": lambda reader: reader._push(tuple(reader._pop_marked())),
    b"\x85": lambda reader: reader._tuple(1),
    b"\x86": lambda reader: reader._tuple(2),
    b"\x87": lambda reader: reader._tuple(3),
    b"a": lambda reader: reader._append([reader._pop()]),
    b"e": lambda reader: reader._append(reader._pop_marked()),
    b"s": _Reader._setitem,
    b"u": lambda reader: reader._set(reader._pop_marked()),
    b"N": lambda reader: reader._push(None),
    b"\x88": lambda reader: reader._push(True),
    b"\x89": lambda reader: reader._push(False),
    b"J": lambda reader: reader._push(reader._unpack("<i")),
    b"K": lambda reader: reader._push(reader._unpack("B")),
    b"M": lambda reader: reader._push(reader._unpack("<H")),
    b"\x8a": _Reader._long,
    b"G": lambda reader: reader._push(reader._unpack(">d")),
    b"X": lambda reader: reader._text("<I"),
    b"U": lambda reader: reader._text("B"),
}
