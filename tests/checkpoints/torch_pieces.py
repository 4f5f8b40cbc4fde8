"""PyTorch's files put together from pieces, right and wrong ones; needs no PyTorch."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + b"\x80\x02M\xe9\x03."
EIGHT = struct.pack("<8f", *range(8))


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def named(path: str) -> bytes:
    module, _, name = path.rpartition(".")
    return b"c" + f"{module}\n{name}\n".encode()


def tuple_of(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def call(path: str, *values: bytes) -> bytes:
    return named(path) + tuple_of(*values) + b"R"


def mapping(pairs: Mapping[str, bytes] | Iterable[tuple[bytes, bytes]]) -> bytes:
    if isinstance(pairs, Mapping):
        pairs = [(text(key), value) for key, value in pairs.items()]
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


ORDERED = call("collections.OrderedDict")


def storage(key: str = "0", kind: str = "torch.FloatStorage", count: Any = 8, rest: bytes = b"") -> bytes:
    count = count if isinstance(count, bytes) else number(count)
    return tuple_of(text("storage"), named(kind), text(key), text("cpu"), count, rest) + b"Q"


def tensor(
    offset: Any = 0,
    shape: tuple[Any, ...] = (2, 4),
    strides: tuple[Any, ...] = (4, 1),
    of: bytes | None = None,
    rest: Iterable[bytes] = (b"\x89", ORDERED),
    function: str = "torch._utils._rebuild_tensor_v2",
) -> bytes:
    def raw(value: Any) -> bytes:
        return value if isinstance(value, bytes) else number(value)

    sizes, steps = tuple_of(*map(raw, shape)), tuple_of(*map(raw, strides))
    return call(function, storage() if of is None else of, raw(offset), sizes, steps, *rest)


def pickle(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


GOOD = pickle(mapping({"a": tensor()}))


def archive(
    records: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    end: Mapping[str, int] | None = None,
    prefix: bytes = b"",
    between: bytes = b"",
    suffix: bytes = b"",
) -> bytes:
    """A zip archive; `changes` of a record's fields begin with "local_" where only its own header has them."""
    out, directory, count = bytearray(prefix), bytearray(), 0
    for name, data in records.items() if isinstance(records, Mapping) else records:
        change = dict((changes or {}).get(name, {}))
        plain = change.pop("plain", data)
        field = {"flags": 0, "method": 0, "crc": zlib.crc32(plain), "packed": len(data), "size": len(plain)}
        field |= {"name": name.encode(), "extra": b"", "comment": b"", "disk": 0, "offset": len(out), "behind": b""}
        central = field | {key: value for key, value in change.items() if not key.startswith("local_")}
        local = central | {key.removeprefix("local_"): value for key, value in change.items()}
        local |= {"extra": change.get("local_extra", b"")}
        out += struct.pack(
            *("<4s5H3L2H", b"PK\x03\x04", 20, local["flags"], local["method"], 0, 0),
            *(local["crc"], local["packed"], local["size"], len(local["name"]), len(local["extra"])),
        )
        out += local["name"] + local["extra"] + data + central["behind"]
        directory += struct.pack(
            *("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, central["flags"], central["method"], 0, 0),
            *(central["crc"], central["packed"], central["size"], len(central["name"]), len(central["extra"])),
            *(len(central["comment"]), central["disk"], 0, 0, central["offset"]),
        )
        directory += central["name"] + central["extra"] + central["comment"]
        count += 1
    out += between
    fields = {"disk": 0, "first": 0, "here": count, "count": count, "size": len(directory), "begin": len(out)}
    fields |= {"comment": 0} | dict(end or {})
    return bytes(out + directory) + b"PK\x05\x06" + struct.pack("<4H2LH", *fields.values()) + suffix


def saved(body: bytes = GOOD, storages: Mapping[str, bytes] | None = None, **arguments: Any) -> bytes:
    """A file with a whole pickle and some storages."""
    data = {"0": EIGHT} if storages is None else storages
    records = {"m/data.pkl": body, "m/byteorder": b"little", "m/version": b"3\n"}
    return archive(records | {f"m/data/{key}": raw for key, raw in data.items()}, **arguments)


def legacy(body: bytes = b"", keys: bytes | None = None, storages: bytes | None = None, machine: bytes = b"") -> bytes:
    """The older form with one storage of eight numbers."""
    machine = machine or pickle(mapping({"little_endian": b"\x88"}))
    body = body or pickle(mapping({"a": tensor(of=storage(rest=b"N"))}))
    keys = pickle(b"](" + text("0") + b"e") if keys is None else keys
    return LEGACY + machine + body + keys + (struct.pack("<q", 8) + EIGHT if storages is None else storages)
