"""PyTorch's files from strangers: whatever is wrong with one is one line, soon, and nothing of it runs."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest
from checkpoints import torch
from hostile_torch_files import hostile_files

# In a process of its own, which ends if one of these files makes it read outside of a mapping, and in which nothing
# may happen but what the reader does itself: an audit hook sees whatever Python does.
READ = """
import json, os, pathlib, random, struct, sys, time
sys.path.insert(0, sys.argv[1])
from torch_pieces import EIGHT, LEGACY, saved
from kerasdiff.bench.machine import peak_memory_gb
from kerasdiff.errors import ModelError
from kerasdiff.runtime.safetensors_map import TensorFiles

EXPECTED = {"open", "mmap.__new__", "object.__getattr__"}
events, watched = set(), False
def watch(event, arguments):
    if watched and (event not in EXPECTED or (event == "open" and arguments[1] not in ("r", "rb"))):
        events.add(f"{event} {arguments!r:.200}")
sys.addaudithook(watch)

def outcome(path):
    global watched
    watched = True
    try:
        tensors = TensorFiles([path])
        for name in tensors:
            tensors.read(name).tobytes()
        return "read"
    except ModelError as error:
        return "long" if chr(10) in str(error) or len(str(error)) > 600 else "refused"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        watched = False

def mutated(content, chance):
    content = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        place, kind = chance.randrange(len(content)), chance.randrange(6)
        if kind == 0:
            content[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            content[place] = chance.choice(b"\\x00\\x01\\x80\\xff(cRbQqhrj}]tsuea.NK\\x85\\x86\\x87\\x81\\x8a\\x88")
        elif kind == 2:
            content[place : place + chance.choice((1, 2, 4, 8))] = b""
        elif kind == 3:
            content[place:place] = chance.choice((b"\\xff" * 4, b"h\\x01", b"cos\\nsystem\\n", b"(", b"N", bytes(8)))
        elif kind == 4:
            begin = chance.randrange(len(content))
            content[place:place] = content[begin : begin + chance.randrange(1, 30)]
        else:
            content[place : place + 4] = struct.pack("<I", chance.choice((0, 1, 2**16, 2**31, 2**32 - 1)))
    return bytes(content)

place = pathlib.Path(sys.argv[2])
file = open(place, "w+b", buffering=0)  # emptying one anew takes a millisecond
for path in map(pathlib.Path, json.loads(sys.stdin.readline())):  # what is imported late is there now
    outcome(path)
base = peak_memory_gb()
for line in sys.stdin:
    task = json.loads(line)
    started = time.perf_counter()
    if "path" in task:
        result = outcome(pathlib.Path(task["path"]))
    else:
        chance, result = random.Random(task["seed"]), {}
        for _ in range(task["count"]):
            content = mutated(bytes.fromhex(task["content"]), chance)
            if task["pickle"]:
                content = saved(content, {str(index): EIGHT for index in range(task["pickle"])})
            os.pwrite(file.fileno(), content, 0)
            os.truncate(file.fileno(), len(content))
            before = time.perf_counter()
            one = outcome(place)
            slow = time.perf_counter() - before > 1
            result[f"{one} slow" if slow else one] = result.get(f"{one} slow" if slow else one, 0) + 1
    print(json.dumps([result, time.perf_counter() - started, peak_memory_gb() - base, sorted(events)]), flush=True)
    events.clear()
"""


def run(tmp_path, tasks, *warm):
    """What came of each task: its result, seconds, gigabytes, and what Python did that the reader does not do."""
    lines = [json.dumps(list(map(str, warm))), *map(json.dumps, tasks)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READ, str(pathlib.Path(__file__).parent), str(tmp_path / "mutated")],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(tasks)
    return rows


def good_file(tmp_path, legacy):
    path = tmp_path / f"good-{legacy}.pt"
    weight = torch.nn.Parameter(torch.arange(8, dtype=torch.float32).reshape(2, 4))
    value = {"state_dict": {"a": weight, "b": weight.data.T, "c": torch.zeros(8).long()}, "epoch": 3, "x": [1.5, None]}
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def test_hostile_files_are_refused_and_nothing_of_them_runs(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    files = {}
    for number, (name, content) in enumerate(hostile_files().items()):
        files[name] = corpus / f"{number}.ckpt"
        files[name].write_bytes(content)
    assert len(files) >= 900
    good = [good_file(tmp_path, legacy) for legacy in (False, True)]
    rows = run(tmp_path, [{"path": str(path)} for path in [*good, *files.values()]], *good, *list(files.values())[:3])
    for name, (outcome, seconds, grown, events) in zip(["good", "good", *files], rows, strict=True):
        assert outcome == ("read" if name == "good" else "refused"), name
        assert seconds < 2, name
        assert grown < 0.4, name
        assert not events, name
    assert not list(tmp_path.rglob("hacked"))


def fuzzed(tmp_path, count):
    import zipfile

    zipped, old = (good_file(tmp_path, legacy) for legacy in (False, True))
    with zipfile.ZipFile(zipped) as opened:
        (inner,) = [opened.read(name) for name in opened.namelist() if name.endswith("data.pkl")]
    # A pickle is changed inside of an archive that is right, where no checksum tells.
    kinds = [(zipped.read_bytes(), 0, 1), (old.read_bytes(), 0, 2), (inner, 2, 2)]
    tasks = [
        {"content": content.hex(), "pickle": storages, "count": share * count // 5, "seed": seed}
        for seed, (content, storages, share) in enumerate(kinds)
    ]
    found: dict[str, int] = {}
    for outcomes, _, grown, events in run(tmp_path, tasks, zipped, old):
        assert outcomes.keys() <= {"read", "refused"}
        assert grown < 0.2
        assert not events
        for outcome, number in outcomes.items():
            found[outcome] = found.get(outcome, 0) + number
    assert sum(found.values()) == count
    assert found["refused"] > count / 2
    assert not list(tmp_path.rglob("hacked"))


def test_ten_thousand_files_that_were_changed_at_random(tmp_path):
    fuzzed(tmp_path, 10_000)


@pytest.mark.slow
def test_more_files_that_were_changed_at_random(tmp_path):
    fuzzed(tmp_path, 200_000)
