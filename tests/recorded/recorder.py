"""What recorded requests came to, as digests; `python tests/recorded/recorder.py` compares, with --write it records.

Bits are those of one kind of processor and of certain versions, which the record names under "facts". Everywhere else
images are compared by their look: 8 x 8 averages.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import hashlib
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import re
import tempfile
import time
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from recorded_models import Models

    import kerasdiff

RECORD = pathlib.Path(__file__).with_name("record.json")
# Grey levels that the look of an image may differ by on another processor.
NEAR = 3
# What is compared everywhere, and what only where bits are comparable.
EVERYWHERE, HERE_ONLY = ("metadata", "told"), ("images", "latents", "beside")
_PACKAGES = ("tensorflow", "tensorflow-cpu", "keras", "numpy", "jax", "jaxlib")
# By which oneDNN and XLA choose their kernels.
_ABILITIES = re.compile(r"sse4_[12]|avx.*|amx.*|fma|f16c")
_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "TF_ENABLE_ONEDNN_OPTS", "XLA_FLAGS", "TF_XLA_FLAGS")
_USER_COMMENT, _EXIF = 0x9286, 0x8769
_XMP = "XML:com.adobe.xmp"
_RECEIPT = "{kerasdiff:ns:receipt/}receipt"
_OF_VERSIONS = [(re.compile(r"(Version: kerasdiff) [^,\s]+"), r"\1 *"), (re.compile(r"(Model hash:) \w+"), r"\1 *")]


@dataclasses.dataclass
class Outcome:
    """What a request came to.

    Attributes:
        images: uint8 (N, height, width, 3), or None.
        latents: float32, or None.
        metadata: of each image, what its file says, without what depends on machine, versions and places.
        told: what else was said, the same everywhere, as JSON.
        beside: what else there is that depends on the machine: arrays, and digests of such.
    """

    images: np.ndarray | None = None
    latents: np.ndarray | None = None
    metadata: list[Any] = dataclasses.field(default_factory=list)
    told: dict[str, Any] = dataclasses.field(default_factory=dict)
    beside: dict[str, Any] = dataclasses.field(default_factory=dict)


def drawn(result: kerasdiff.Result, format: str = "png", **told: Any) -> Outcome:  # noqa: A002
    """A result as an outcome.

    Args:
        result: what was drawn.
        format: of the files that metadata is looked at in.
        **told: what else is to be recorded.
    """
    metadata, hashes = zip(*map(said, result.encode(format)), strict=True)
    about = {"seeds": result.seeds, "places": result.places, "stopped_after": result.stopped_after, "nsfw": result.nsfw}
    told = {"model": result.model, **{name: value for name, value in about.items() if value is not None}, **told}
    return Outcome(result.images, result.latents, list(metadata), told, {"hashes": hashes})


def read(*paths: pathlib.Path, **told: Any) -> Outcome:
    """Pictures of one size in files as an outcome.

    Args:
        *paths: of the files.
        **told: what else is to be recorded.
    """
    metadata, hashes = zip(*(said(path.read_bytes()) for path in paths), strict=True)
    return Outcome(np.stack([pixels(path) for path in paths]), None, list(metadata), told, {"hashes": hashes})


def pixels(path: pathlib.Path) -> np.ndarray:
    """Of a picture, uint8 (height, width, 3)."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def said(file: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the file of a picture says, and the hashes in it, which depend on the machine."""
    with Image.open(io.BytesIO(file)) as picture:
        picture.load()
        if picture.format == "PNG":
            names = [name for name in picture.info if name != "xmp"]  # which is the same once more
            parameters, text, xmp = (picture.info.get(name) for name in ("parameters", "kerasdiff", _XMP))
        else:
            names = []
            parameters = picture.getexif().get_ifd(_EXIF).get(_USER_COMMENT)
            parameters = None if parameters is None else parameters.hex()
            text, xmp = None, picture.info.get("xmp")
            xmp = None if xmp is None else xmp.decode().rstrip("\0")
        kind = picture.format
    if text is None and xmp is not None:
        text = ElementTree.fromstring(xmp).findtext(f".//{_RECEIPT}")
        xmp = re.sub(r"(<kerasdiff:receipt[^>]*>).*(</kerasdiff:receipt>)", r"\1*\2", xmp, flags=re.DOTALL)
    if parameters is not None and kind != "PNG":
        heading, parameters = bytes.fromhex(parameters)[:8], bytes.fromhex(parameters)[8:].decode("utf-16-be")
        names = [heading.decode("latin-1")]
    for pattern, plain in _OF_VERSIONS:
        parameters = None if parameters is None else pattern.sub(plain, parameters)
    receipt, hashes = (None, {}) if text is None else plain_receipt(json.loads(text))
    return {"kind": kind, "names": names, "parameters": parameters, "receipt": receipt, "xmp": xmp}, hashes


def plain_receipt(receipt: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A receipt with its keys in order, without what depends on the machine; and the hashes that were in it."""
    hashes = {name: receipt[name] for name in ("model_hash", "given", "pictures") if receipt.get(name)}
    plain = dict(receipt)
    for name in ("kerasdiff", "device", "model_hash"):
        plain[name] = "*" if plain[name] is not None else None
    for name in ("versions", "given", "pictures"):
        plain[name] = list(plain[name]) if plain[name] is not None else None
    plain["model"] = pathlib.PurePath(plain["model"]).name
    return plain, hashes


def entry_of(outcome: Outcome) -> dict[str, Any]:
    """What the record has of an outcome."""
    entry: dict[str, Any] = {name: _sha256(getattr(outcome, name)) for name in (*HERE_ONLY, *EVERYWHERE)}
    if outcome.images is not None:
        entry["shape"] = list(outcome.images.shape)
        entry["look"] = base64.b64encode(look(outcome.images).tobytes()).decode()
    return entry


def look(images: np.ndarray) -> np.ndarray:
    """The first two images in 8 x 8 areas, uint8 (N, 8, 8, 3)."""
    count, height, width, _ = images[:2].shape
    areas = images[:2].reshape(count, 8, height // 8, 8, width // 8, 3)
    return np.rint(areas.mean((2, 4), dtype="float64")).astype("uint8")


def differences(outcome: Outcome, entry: Mapping[str, Any], same_bits: bool, rough: bool = False) -> list[str]:
    """What is not as it was recorded, a line each.

    Args:
        outcome: of now.
        entry: of the record.
        same_bits: whether bits are comparable.
        rough: whether looks are compared on the average of their areas, as half precision needs: without oneDNN an
            area differed by 25 grey levels, and the average by 2.
    """
    now, found = entry_of(outcome), []
    if now.get("shape") != entry.get("shape"):
        return [f"images: shape {now.get('shape')}, recorded {entry.get('shape')}"]
    if outcome.images is not None:
        before = np.frombuffer(base64.b64decode(entry["look"]), "uint8").astype(int)
        apart = np.abs(look(outcome.images).ravel() - before)
        far = apart.mean() if rough else apart.max()
        if far > NEAR:
            found.append(f"look: areas differ by {far:.3g} grey levels from the recorded ones")
    for name in EVERYWHERE:
        if now[name] != entry[name]:
            found.append(f"{name}: not as recorded; now {json.dumps(getattr(outcome, name), ensure_ascii=False)}")
    if same_bits:
        found += [f"{name}: bits are not as recorded" for name in HERE_ONLY if now[name] != entry[name]]
    return found


def facts() -> dict[str, Any]:
    """Under which bits are comparable: processor, number of threads, versions, and settings of both."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {package: version for package in _PACKAGES if (version := _version(package))},
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "accelerators": sorted(path.name for path in pathlib.Path("/dev").glob("nvidia[0-9]*")),
    }


def _processor() -> dict[str, str]:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {"model name": platform.processor()}
    pairs = [tuple(part.strip() for part in line.partition(":")[::2]) for line in lines if ":" in line]
    told = dict(reversed(pairs))  # the first of several
    abilities = [flag for flag in told.get("flags", "").split() if _ABILITIES.fullmatch(flag)]
    named = {name: told.get(name, "") for name in ("vendor_id", "cpu family", "model", "model name")}
    return {**named, "abilities": " ".join(sorted(abilities))}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _sha256(value: Any) -> str | None:
    if value is None:
        return None
    text = json.dumps(value, ensure_ascii=False, default=_array)
    return hashlib.sha256(text.encode()).hexdigest()


def _array(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    value = np.ascontiguousarray(value)
    return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]


def read_record() -> dict[str, Any]:
    """What was recorded: "facts", and "requests" by name."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {"facts": None, "requests": {}}


def carry_out(name: str, models: Models) -> Outcome:
    """Draws a request, with its warnings among what was told.

    Args:
        name: of the request.
        models: to draw with.
    """
    from recorded_requests import REQUESTS

    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", category=UserWarning)
        outcome = REQUESTS[name].draw(models)
    messages = [str(one.message) for one in caught if type(one.message) is UserWarning]
    if messages:
        outcome.told = {**outcome.told, "warnings": messages}
    return outcome


def main() -> int:
    """Compares with the record, or writes it; 1 if something differs from what was recorded."""
    os.environ["KERASDIFF_BACKEND"] = "tensorflow"  # as under pytest
    from recorded_models import Models
    from recorded_requests import REQUESTS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="requests, or beginnings of their names; all if none is given")
    parser.add_argument("--write", action="store_true", help="record anew, and say what changed")
    parser.add_argument("--quick", action="store_true", help="without the slow ones")
    asked = parser.parse_args()
    record, now = read_record(), facts()
    chosen = [name for name in REQUESTS if not asked.names or name.startswith(tuple(asked.names))]
    chosen = [name for name in chosen if not (asked.quick and REQUESTS[name].slow)]
    other_facts = record["facts"] is not None and record["facts"] != now
    if other_facts:
        print("bits are not comparable with those of the record: another processor, other versions or settings")
        if asked.write and set(chosen) != set(REQUESTS):
            print("record all requests, as all bits of a record are of one machine")
            return 1
    requests, changed = dict(record["requests"]), 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KERASDIFF_CACHE"] = str(pathlib.Path(folder) / "cache")
        models = Models(pathlib.Path(folder))
        for name in chosen:
            started = time.perf_counter()
            outcome = carry_out(name, models)
            seconds = time.perf_counter() - started
            wrong = (
                differences(outcome, requests[name], not other_facts, REQUESTS[name].rough) if name in requests else []
            )
            changed += bool(wrong)
            new = "" if name in requests else ", new"
            print(f"{name:28}{seconds:7.2f} s{new}", *wrong, sep="\n    ", flush=True)
            requests[name] = entry_of(outcome)
    gone = sorted(requests.keys() - REQUESTS.keys())
    if gone:
        print("no longer asked for:", ", ".join(gone))
    if asked.write:
        requests = {name: requests[name] for name in REQUESTS if name in requests}
        RECORD.write_text(json.dumps({"facts": now, "requests": requests}, indent=1) + "\n")
        print(f"{RECORD.name}: {len(requests)} requests, {changed} of them changed")
    return int(changed > 0 and not asked.write)


if __name__ == "__main__":
    raise SystemExit(main())
