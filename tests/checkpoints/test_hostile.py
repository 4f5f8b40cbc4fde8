"""Files from strangers: damaged, lying or malicious ones give one clear error, soon, and run nothing."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import checkpoints
import pytest

# In a process of its own, whose memory and time are then only the reading's. Nothing here needs TensorFlow
# until the files are found to fit.
READ = """
import json, pathlib, sys, time
from kerasdiff.bench.machine import peak_memory_gb
from kerasdiff.errors import KerasdiffError
from kerasdiff.checkpoints.mapped_source import MappedSource, TensorSlice
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.runtime.safetensors_map import TensorFiles

expected = {name: tuple(shape) for name, shape in json.loads(sys.stdin.readline())}
base = peak_memory_gb()
for line in sys.stdin:
    path = pathlib.Path(line.strip())
    started, outcome = time.perf_counter(), "read"
    try:
        if path.is_dir() and path.suffix == "":
            open_model(path)
        else:
            source = MappedSource(TensorFiles([path]), expected, lambda name: [TensorSlice(name)], lambda key: False)
            for name, shape in expected.items():
                source(name, shape).sum()
    except KerasdiffError as error:
        outcome = "long" if chr(10) in str(error) or len(str(error)) > 1000 else "refused"
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"
    grown = peak_memory_gb() - base
    print(json.dumps([path.name, outcome, time.perf_counter() - started, grown]), flush=True)
"""
EXPECTED = {"a.weight": (4, 3), "b.bias": (5,), "c.weight": (2, 3, 3, 3)}


def header_of(entries, data=b""):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def good():
    entries, start = {}, 0
    for name, shape in EXPECTED.items():
        size = 4
        for one in shape:
            size *= one
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    return entries, bytes(range(256)) * (start // 256 + 1), start


def changed(name, **values):
    entries, data, size = good()
    entries[name] = {**entries[name], **values}
    return header_of(entries, data[:size])


def files():
    """name -> content."""
    entries, data, size = good()
    whole = header_of(entries, data[:size])
    made = {"good": whole}
    for length in sorted({*range(0, 40), *range(40, len(whole), 7), len(whole) - 1}):
        made[f"prefix-{length}"] = whole[:length]
    header = len(whole) - size
    for place in range(0, header * 8, 9):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        made[f"flip-{place}"] = bytes(flipped)
    made["longer"] = whole + b"x"
    for power in (31, 32, 63, 64):
        made[f"header-of-2-to-{power}"] = (2**power - 1).to_bytes(8, "little") + whole[8:]
    pair = json.dumps(entries["a.weight"])
    made["duplicate"] = header_of(f'{{"a.weight": {pair}, {json.dumps(entries)[1:]}'.encode(), data[:size])
    made["dtype"] = changed("a.weight", dtype="I32")
    made["dtype-unknown"] = changed("a.weight", dtype="F8_X")
    made["shape"] = changed("a.weight", shape=[3, 4])
    made["shape-huge"] = changed("a.weight", shape=[2**40, 2**40])
    made["shape-negative"] = changed("a.weight", shape=[-4, -3])
    made["shape-scalar"] = changed("b.bias", shape=[])
    made["offsets-outside"] = changed("a.weight", data_offsets=[10**12, 10**12 + 48])
    made["offsets-overlap"] = changed("b.bias", data_offsets=[0, 20])
    made["offsets-backwards"] = changed("b.bias", data_offsets=[68, 48])
    made["extra"] = header_of(
        {**entries, "d": {"dtype": "F32", "shape": [0], "data_offsets": [size, size]}}, data[:size]
    )
    made["deep"] = header_of(b"[" * 100_000)
    made["not-an-object"] = header_of(b"[1, 2]")
    made["text"] = b"this is no checkpoint at all, only some words about one"
    made["pickle-0"] = b"cos\nsystem\n(S'touch hacked'\ntR."
    for protocol in (2, 3, 4, 5):
        made[f"pickle-{protocol}"] = bytes([0x80, protocol]) + b"cposix\nsystem\nX\x0c\x00\x00\x00touch hacked\x85R."
    made["zip"] = b"PK\x03\x04" + bytes(600)
    made["tar"] = bytes(257) + b"ustar" + bytes(300)
    made["hdf5"] = b"\x89HDF\r\n\x1a\n" + bytes(600)
    made["empty-header"] = header_of(b"{}")
    return made


SETTINGS = (
    [
        ("unet", "block_out_channels", value)
        for value in ([], [0, 64], [-32, 64], [32] * 10**5, [2**40, 2**41], "32", {"a": 1}, [32, None], [1e9, 64], True)
    ]
    + [("unet", "layers_per_block", value) for value in (0, -1, 10**9, 1.5, "2", [2], True)]
    + [("unet", "down_block_types", value) for value in ([], ["x"], [["DownBlock2D"]], "DownBlock2D", [None, None])]
    + [("unet", "attention_head_dim", value) for value in (0, 7, [8], [8, "x"], 10**30)]
    + [("unet", "sample_size", value) for value in (0, -8, "64", [64, 64, 64], [64, "x"], 10**12, [[8]], True)]
    + [("unet", name, [value]) for name in ("only_cross_attention", "cross_attention_dim") for value in (1, {}, [[1]])]
    + [("unet", "in_channels", value) for value in (5, 8, 0, 10**9)]
    + [("unet", "norm_num_groups", value) for value in (0, 7, "8", 10**9)]
    + [("vae", "block_out_channels", value) for value in ([], [32] * 9, [2**50] * 4, "x")]
    + [("vae", "scaling_factor", value) for value in (0, -1.0, 1e300, "x")]
    + [
        ("text_encoder", name, value)
        for name in ("num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings")
        for value in (0, -5, 10**12, "x", [1])
    ]
    + [
        ("scheduler", name, value)
        for name, value in [
            ("beta_start", 2.0),
            ("beta_end", -1),
            ("beta_schedule", ["linear"]),
            ("prediction_type", "flow"),
            ("num_train_timesteps", 0),
            ("num_train_timesteps", 10**12),
            ("trained_betas", [0.5]),
            ("trained_betas", ["x"] * 1000),
        ]
    ]
)


def test_a_corpus_of_hostile_files(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, content in files().items():
        (corpus / f"{name}.safetensors").write_bytes(content)
    (corpus / "folder.safetensors").mkdir()
    (corpus / "loop.safetensors").symlink_to(corpus / "loop.safetensors")
    (corpus / "nowhere.safetensors").symlink_to(tmp_path / "missing")
    paths = sorted(corpus.iterdir())
    model = checkpoints.save(checkpoints.pipeline("v1", tmp_path / "vocabulary"), tmp_path / "model")
    for number, (part, name, value) in enumerate(SETTINGS):
        copy = tmp_path / "settings" / f"{number}-{part}-{name}"
        for source in model.rglob("*.json"):
            target = copy / source.relative_to(model)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
        file = copy / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
        paths.append(copy)
    assert len(paths) >= 200
    lines = [json.dumps(list(EXPECTED.items())), *map(str, paths)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READ],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(paths)
    for name, outcome, seconds, grown in rows:
        # A flipped bit in a name's length or in white space may leave a file that still fits; so does another tensor.
        fits = name in ("good.safetensors", "extra.safetensors") or name.startswith("flip-")
        assert outcome == "refused" or (fits and outcome == "read"), (name, outcome)
        assert seconds < 2, name
        assert grown < 0.5, name
    assert {row[0]: row[1] for row in rows}["good.safetensors"] == "read"
    assert not list(tmp_path.rglob("hacked"))
    assert not pathlib.Path("hacked").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", '{"a": ', "\x00" * 50, "[" * 10**5])
def test_settings_that_are_no_json(tmp_path, text):
    from kerasdiff.checkpoints.formats.json_settings import read_json
    from kerasdiff.errors import ModelError

    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ModelError, match=r"config\.json (is not JSON|holds)"):
        read_json(path)
