"""LoRA files from strangers: whatever is wrong is one line, soon and in little memory, and nothing in them is run."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import ml_dtypes
import numpy as np

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
NAME, SIDE = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.kernel", 32
# Reads every file as far as it goes. In a process of its own, whose memory and time are only the reading's.
READ = f"""
import json, pathlib, sys, time
import numpy as np
from kerasdiff.adapters.file_search import find_lora
from kerasdiff.adapters.lora_file import read_lora
from kerasdiff.adapters.weight_change import changed
from kerasdiff.bench.machine import peak_memory_gb
from kerasdiff.errors import KerasdiffError
from kerasdiff.models.config import SD_V1

shapes = {{"unet": {{"{NAME}": ({SIDE}, {SIDE})}}}}
base = peak_memory_gb()
for text in sys.stdin:
    started, said = time.process_time(), "read"
    try:
        lora = read_lora(find_lora(json.loads(text)))
        assert len(json.dumps(lora.summary)) < 2000
        lora.fit(shapes, SD_V1)
        for change in lora.changes("unet", shapes["unet"], SD_V1).values():
            tensors = {{suffix: read() for suffix, read in change.tensors.items()}}
            changed(tensors, np.ones(({SIDE}, {SIDE}), "float32"), 1.0)
    except KerasdiffError as error:
        said = str(error)
    except BaseException as error:
        said = f"FOREIGN {{type(error).__name__}}: {{error}}"
    row = [json.loads(text), said, time.process_time() - started, peak_memory_gb() - base]
    print(json.dumps(row), flush=True)
"""
TYPES = {"F32": "float32", "F16": "float16", "I64": "int64", "U8": "uint8", "BOOL": "bool", "BF16": ml_dtypes.bfloat16}


def entries(**tensors):
    """A header and the data of tensors."""
    header, data = {}, b""
    for name, value in tensors.items():
        kinds = {np.dtype(kind): name for name, kind in TYPES.items()}
        offsets = [len(data), len(data) + value.nbytes]
        header[name] = {"dtype": kinds[value.dtype], "shape": list(value.shape), "data_offsets": offsets}
        data += value.tobytes()
    return header, data


def file_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def lora(layer=LAYER, **changes):
    """A file with a pair that fits, and with other tensors; None leaves one out."""
    pair = {"lora_down.weight": ones(2, SIDE), "lora_up.weight": ones(SIDE, 2), "alpha": np.array(2, "float32")}
    pair |= {suffix.replace("__", "."): value for suffix, value in changes.items()}
    return file_of(*entries(**{f"{layer}.{suffix}": value for suffix, value in pair.items() if value is not None}))


def ones(*shape, kind="float32"):
    return np.ones(shape, kind)


def files():
    """Name -> content, and what is said of it if that matters."""
    whole = lora()
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    down, up = f"{LAYER}.lora_down.weight", f"{LAYER}.lora_up.weight"
    changed = lambda key, **values: file_of({**header, key: {**header[key], **values}}, data)  # noqa: E731
    told = lambda **metadata: file_of({"__metadata__": metadata, **header}, data)  # noqa: E731
    made = {f"prefix-{size}": whole[:size] for size in (*range(0, 20, 3), *range(20, len(whole), 40), len(whole) - 1)}
    for place in range(0, 8 * (8 + length), 61):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        made[f"flip-{place}"] = bytes(flipped)
    made |= {f"header-of-2-to-{power}": (2**power - 1).to_bytes(8, "little") + whole[8:] for power in (31, 32, 63, 64)}
    made |= {
        "longer": whole + b"x",
        "duplicate key": file_of(f'{{"{down}": {json.dumps(header[down])}, {json.dumps(header)[1:]}'.encode(), data),
        "offsets overlap": changed(up, data_offsets=header[down]["data_offsets"]),
        "offsets backwards": changed(up, data_offsets=header[up]["data_offsets"][::-1]),
        "offsets outside": changed(up, data_offsets=[10**15, 10**15 + 256]),
        "negative shape": changed(up, shape=[-SIDE, -2]),
        "huge shape": changed(up, shape=[2**40, 2**40]),
        "shape that overflows": changed(up, shape=[2**63, 2]),
        "other shape": changed(up, shape=[2, SIDE]),
        "many axes": changed(up, shape=[SIDE, 2] + [1] * 100),
        "no axes": changed(up, shape=[]),
        "unknown type": changed(up, dtype="F4"),
        "null": changed(up, dtype=None),
        "no object": file_of(b"[1, 2]"),
        "text as header": file_of(b'"text"'),
        "deep header": file_of(b"[" * 100_000),
        "deep object": file_of(b'{"a":' * 100_000),
        "empty header": file_of(b"{}"),
        "only metadata": file_of({"__metadata__": {"ss_network_dim": "4"}}),
        "metadata of numbers": file_of({"__metadata__": {"a": 1}, **header}, data),
        "nan": lora(lora_up__weight=ones(SIDE, 2) * np.nan),
        "nan in half precision": lora(lora_up__weight=ones(SIDE, 2, kind="float16") * np.float16("nan")),
        "infinite": lora(lora_up__weight=ones(SIDE, 2) * np.inf),
        "infinite alpha": lora(alpha=np.array(np.inf, "float32")),
        "alphas": lora(alpha=ones(3)),
        "no alpha in it": lora(alpha=ones(0)),
        "alpha is a switch": lora(alpha=np.array([[True, False]])),
        "zero size": lora(lora_up__weight=ones(SIDE, 0)),
        "both of zero size": lora(lora_up__weight=ones(SIDE, 0), lora_down__weight=ones(0, SIDE)),
        "zero inputs": lora(lora_down__weight=ones(2, 0)),
        "half a pair": lora(lora_up__weight=None),
        "other half": lora(lora_down__weight=None),
        "alpha alone": lora(lora_up__weight=None, lora_down__weight=None),
        "core alone": lora(lora_up__weight=None, lora_down__weight=None, lora_mid__weight=ones(2, 2, 3, 3)),
        "whole numbers": lora(lora_up__weight=ones(SIDE, 2, kind="int64")),
        "switches": lora(lora_up__weight=ones(SIDE, 2, kind="bool")),
        "bytes": lora(lora_up__weight=ones(SIDE, 2, kind="uint8")),
        "huge rank": lora(lora_up__weight=ones(SIDE, 20_000), lora_down__weight=ones(20_001, SIDE)),
        "ranks differ": lora(lora_up__weight=ones(SIDE, 3)),
        "other width": lora(lora_down__weight=ones(2, SIDE + 1)),
        "convolution": lora(lora_down__weight=ones(2, SIDE, 3, 3)),
        "core that does not fit": lora(lora_mid__weight=ones(3, 3, 3, 3)),
        "lengths of nothing": lora(dora_scale=ones(SIDE + 1, 1)),
        "two kinds": lora(diff=ones(SIDE, SIDE)),
        "two spellings": lora(lora_A__weight=ones(2, SIDE)),
        "hada": lora(lora_up__weight=None, lora_down__weight=None, hada_w1_a=ones(SIDE, 2)),
        "kron of nothing": lora(lora_up__weight=None, lora_down__weight=None, lokr_w1=ones(3, 3), lokr_w2=ones(5, 5)),
        "kron that is huge": lora(
            lora_up__weight=None, lora_down__weight=None, lokr_w1=ones(900, 900), lokr_w2=ones(900, 900)
        ),
        "rotation": lora(lora_up__weight=None, lora_down__weight=None, oft_blocks=ones(5, 3, 4)),
        "many rotations": lora(lora_up__weight=None, lora_down__weight=None, oft_blocks=ones(10_000, 4, 8, 8)),
        "ia3": lora(lora_up__weight=None, lora_down__weight=None, weight=ones(5), on_input=np.array(True)),
        "other layer": lora("lora_unet_no_such_layer"),
        "empty name": lora(""),
        "long name": lora("x" * 10**6),
        "name to search long": lora("lora_unet_" + "blocks_1_" * 10**5),
        "name to search long for other files": lora(".processor." * 10**5),
        "controls": lora("\x1b[31m\r\n\u202e"),
        "path as a name": lora("../../etc/passwd"),
        "half a surrogate": file_of(b'{"\\ud800.diff":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        "sdxl": lora("lora_te2_text_model_encoder_layers_0_mlp_fc1"),
        "alpha of peft is text": told(lora_adapter_metadata='{"unet.lora_alpha": "x", "lora_alpha": "x"}'),
        "alpha of peft is nan": told(lora_adapter_metadata='{"lora_alpha": NaN}'),
        "many patterns": told(
            lora_adapter_metadata=json.dumps({"lora_alpha": 1, "alpha_pattern": {str(n): 1 for n in range(3000)}})
        ),
        "slow pattern": told(lora_adapter_metadata=json.dumps({"lora_alpha": 1, "alpha_pattern": {"(a+)+$": 1}})),
        "peft says no object": told(lora_adapter_metadata="[1]"),
        "peft says no json": told(lora_adapter_metadata="{"),
        "peft is deep": told(lora_adapter_metadata="[" * 10**5),
        "a million keys": file_of(
            b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % n for n in range(10**6)) + b"}"
        ),
        "keys": file_of(
            b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % n for n in range(10**5)) + b"}"
        ),
        "zip": b"PK\x03\x04" + bytes(600),
        "tar": bytes(257) + b"ustar" + bytes(300),
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(600),
        "gguf": b"GGUF" + bytes(600),
        "git lfs": b"version https://git-lfs.github.com/spec/v1\n",
        "web page": b"<!DOCTYPE html><html>Not found</html>",
        "pickle-0": b"cos\nsystem\n(S'touch hacked'\ntR.",
        **{f"pickle-{n}": bytes([0x80, n]) + b"cposix\nsystem\nX\x0c\x00\x00\x00touch hacked\x85R." for n in (2, 3, 4)},
    }
    return {"good": whole, "bfloat16": lora(lora_up__weight=ones(SIDE, 2, kind=ml_dtypes.bfloat16)), **made}


# Files that may be read: others must not.
FITS = ("good", "bfloat16")
SAID = {
    "a million keys": "has a header of 5",
    "keys": "has a header of 5 MB, far more than the layers of a LoRA need",
    "zip": "is corrupt or incomplete",
    "nan": "numbers that are not finite",
    "sdxl": "is a LoRA for Stable Diffusion XL, and this model is",
    "loop": "cannot be read: Too many levels of symbolic links",
    "nowhere": "cannot be read: No such file",
    "prefix-0": "is empty; get the file again",
    "folder": "has no .safetensors file",
    "many patterns": "alpha_pattern={'0': 1, '1': 1",
    "slow pattern": "the pattern (a+)+$ is not supported",
    "long name": "none of its 3 tensors has a name of one",
}


def test_a_corpus_of_hostile_files(tmp_path):
    for name, content in files().items():
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    (tmp_path / "folder").mkdir()
    (tmp_path / "directory.safetensors").mkdir()
    (tmp_path / "loop.safetensors").symlink_to(tmp_path / "loop.safetensors")
    (tmp_path / "nowhere.safetensors").symlink_to(tmp_path / "missing")
    sparse = tmp_path / "sparse.safetensors"
    with open(sparse, "wb") as file:
        file.truncate(2**40)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) >= 100
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READ],
        input="".join(json.dumps(str(path)) + "\n" for path in paths),
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(paths)
    for path, said, seconds, grown in rows:
        name = pathlib.Path(path).stem
        may_fit = name in FITS or name.startswith("flip-")
        assert said != "read" or may_fit, name
        assert (said == "read") or name not in FITS, (name, said)
        assert not said.startswith("FOREIGN"), (name, said)
        assert said.isprintable(), (name, said)
        assert len(said) < 700, (name, said)
        assert SAID.get(name, "") in said, (name, said)
        assert seconds < 2, name
        assert grown < 0.4, name
    assert not pathlib.Path(tmp_path / "hacked").exists()
