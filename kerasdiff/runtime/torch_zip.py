"""The zip archives of PyTorch, as `torch.save` writes them: every byte of one is accounted for, or it is refused.

So there is only one way to read it: no second directory, nothing before, between or behind its records, and no two
records of one name or place.
"""

from __future__ import annotations

import dataclasses
import re
import struct
import zlib
from typing import Any

from kerasdiff.runtime.torch_objects import DamagedFileError, ForeignPickleError
from kerasdiff.runtime.torch_pickle import MOST_BYTES

_MOST_RECORDS = 50_000
_MOST_SMALL = 4096
_STORED, _DEFLATED = 0, 8
# Bits of a record's flags: sizes come behind it, and its name is UTF-8.
_BEHIND, _UTF8 = 0x08, 0x800
_LARGE = 0xFFFFFFFF
# What stands behind such a record, with sizes of four or eight bytes.
_SUMMARIES = ("<4s3L", "<4sL2Q")
_PICKLE = "data.pkl"
_STORAGE = re.compile(r"data/\d{1,18}")
_OTHERS = (_PICKLE, "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id")


@dataclasses.dataclass(frozen=True)
class Record:
    """A record of an archive, whose content has `packed` bytes from `begin`, and `size` when it is unpacked."""

    begin: int
    packed: int
    size: int
    method: int
    checksum: int

    def content(self, data: Any, most: int) -> bytes:
        """Its content, which is what its checksum says."""
        if max(self.size, self.packed) > most:
            raise DamagedFileError(f"a record of {max(self.size, self.packed)} bytes is larger than it can be")
        raw = data[self.begin : self.begin + self.packed]
        if self.method == _DEFLATED:
            unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                raw = unpacker.decompress(raw, self.size + 1)
            except zlib.error:
                raise DamagedFileError("a record cannot be unpacked") from None
            if not unpacker.eof or unpacker.unused_data:
                raise DamagedFileError("a record is not of the size that it says")
        if len(raw) != self.size or zlib.crc32(raw) != self.checksum:
            raise DamagedFileError("a record's checksum is wrong")
        return raw


def read_archive(data: Any) -> tuple[bytes, dict[str, Record]]:
    """The pickle of an archive, and its storages by their keys, which are not read.

    Raises:
        DamagedFileError, ForeignPickleError: it is none that `torch.save` writes.
    """
    records = _without_root(_records(data, *_directory(data)))
    if any(name == "constants.pkl" or name.startswith("code/") for name in records):
        raise ForeignPickleError("it is a program of TorchScript")
    storages = {}
    for name, record in records.items():
        if _STORAGE.fullmatch(name):
            if record.method != _STORED:
                raise DamagedFileError("a storage is compressed, as torch.save never does")
            storages[name.removeprefix("data/")] = record
        elif name not in _OTHERS:
            raise DamagedFileError(f"it has a record {name[:80]!r}, which torch.save does not write")
    contents = {
        name: record.content(data, MOST_BYTES if name == _PICKLE else _MOST_SMALL)
        for name, record in records.items()
        if name in _OTHERS
    }
    if _PICKLE not in contents:
        raise DamagedFileError(f"it has no {_PICKLE}")
    if contents.get("byteorder", b"little") != b"little":
        raise DamagedFileError("its numbers are big-endian; save it again on a usual machine")
    return contents[_PICKLE], storages


def _directory(data: Any) -> tuple[int, int, int]:
    """Where the directory begins and ends, and how many records it has."""
    place = len(data) - 22
    if place < 0 or data[place : place + 4] != b"PK\x05\x06":
        raise DamagedFileError("it does not end as an archive does")
    disk, first_disk, here, count, size, begin, comment = struct.unpack_from("<4H2LH", data, place + 4)
    small = (disk, first_disk, here, count, size, begin)
    end = place
    if place >= 76 and data[place - 20 : place - 16] == b"PK\x06\x07":
        number, end, disks = struct.unpack_from("<LQL", data, place - 16)
        if end != place - 76 or number or disks != 1:
            raise DamagedFileError("its directory is not where it is said to be")
        sign, length, _, _, *large = struct.unpack_from("<4sQ2H2L4Q", data, end)
        if sign != b"PK\x06\x06" or length != 44:
            raise DamagedFileError("its directory is not where it is said to be")
        for value, other, most in zip(small, large, (0xFFFF,) * 4 + (_LARGE,) * 2, strict=True):
            if value not in (other, most):
                raise DamagedFileError("it has two directories")
        disk, first_disk, here, count, size, begin = large
    if disk or first_disk or here != count:
        raise DamagedFileError("it is a part of an archive")
    if comment or begin + size != end:
        raise DamagedFileError("its directory is not where it is said to be")
    if count > _MOST_RECORDS:
        raise DamagedFileError(f"it has more than {_MOST_RECORDS} records")
    return begin, end, count


def _records(data: Any, begin: int, end: int, count: int) -> dict[str, Record]:
    """The records by their whole names; DamagedFileError if they do not lie one behind the other from the beginning."""
    found: list[tuple[int, bytes, int, Record]] = []
    place = begin
    for _ in range(count):
        if place + 46 > end:
            raise DamagedFileError("its directory breaks off")
        sign, *fields = struct.unpack_from("<4s6H3L5H2L", data, place)
        _, _, flags, method, _, _, checksum, packed, size, name, extra, comment, disk, _, _, offset = fields
        behind = place + 46 + name
        place = behind + extra
        if sign != b"PK\x01\x02" or disk or comment or place > end:
            raise DamagedFileError("its directory is damaged")
        if flags & ~(_BEHIND | _UTF8):
            raise DamagedFileError("a record is encrypted, or of another unusual kind")
        if method not in (_STORED, _DEFLATED):
            raise DamagedFileError(f"a record is compressed by method {method}")
        size, packed, offset = _large(data[behind:place], size, packed, offset)
        if method == _STORED and packed != size:
            raise DamagedFileError("a record has two sizes")
        found.append((offset, data[behind - name : behind], flags, Record(0, packed, size, method, checksum)))
    if place != end:
        raise DamagedFileError("its directory has something left over")
    records: dict[str, Record] = {}
    place = 0
    for offset, raw, flags, record in sorted(found, key=lambda each: each[0]):
        if offset != place:
            raise DamagedFileError("its records overlap, or something lies between them")
        placed, place = _placed(data, begin, offset, raw, flags, record)
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            raise DamagedFileError("a record's name is not UTF-8") from None
        if name in records:
            raise DamagedFileError(f"it has the record {name[:80]!r} twice")
        records[name] = placed
    if place != begin:
        raise DamagedFileError("something lies between its records and its directory")
    return records


def _large(extra: bytes, *values: int) -> list[int]:
    """Sizes and offset of a record, of which those that need more than four bytes are in the extra field."""
    wanted = sum(value == _LARGE for value in values)
    numbers: list[int] = []
    while len(extra) >= 4 and wanted:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1 and 8 * wanted <= length <= len(extra) - 4:
            numbers = list(struct.unpack_from(f"<{wanted}Q", extra, 4))
            break
        extra = extra[4 + length :]
    if len(numbers) != wanted:
        raise DamagedFileError("a record's size is missing")
    return [numbers.pop(0) if value == _LARGE else value for value in values]


def _placed(data: Any, limit: int, offset: int, name: bytes, flags: int, record: Record) -> tuple[Record, int]:
    """A record with where its content begins, and where the next one must begin."""
    if offset + 30 > limit:
        raise DamagedFileError("a record breaks off")
    sign, _, *fields = struct.unpack_from("<4s5H3L2H", data, offset)
    own_flags, method, _, _, checksum, packed, size, length, extra = fields
    begin = offset + 30 + length + extra
    end = begin + record.packed
    same = data[offset + 30 : offset + 30 + length] == name and own_flags == flags and method == record.method
    known = (
        checksum in (0, record.checksum) and packed in (0, _LARGE, record.packed) and size in (0, _LARGE, record.size)
    )
    if sign != b"PK\x03\x04" or not same or not known or end > limit:
        raise DamagedFileError("a record is not what the directory says")
    if flags & _BEHIND:
        said = (b"PK\x07\x08", record.checksum, record.packed, record.size)
        forms = (form for form in _SUMMARIES if end + struct.calcsize(form) <= limit)
        form = next((form for form in forms if struct.unpack_from(form, data, end) == said), None)
        if form is None:
            raise DamagedFileError("a record is not what the directory says")
        end += struct.calcsize(form)
    return dataclasses.replace(record, begin=begin), end


def _without_root(records: dict[str, Record]) -> dict[str, Record]:
    """The records by their names in the only folder of the archive."""
    roots = {name.partition("/")[0] for name in records}
    if len(roots) != 1 or roots & {"", ".", ".."} or any("/" not in name for name in records):
        raise DamagedFileError("its records are not in one folder")
    return {name.partition("/")[2]: record for name, record in records.items()}
