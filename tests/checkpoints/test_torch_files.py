"""Files that `torch.save` wrote, against `torch.load`, bit by bit; and what is no plain file of tensors."""

from __future__ import annotations

import argparse
import collections
import io
import struct
import tarfile
import types
import warnings

import numpy as np
import pytest
import torch_pieces
from checkpoints import torch
from torch_pieces import EIGHT, call, legacy, mapping, named, number, pickle, saved, storage, tensor, text, tuple_of

from kerasdiff.errors import ModelError
from kerasdiff.runtime.safetensors_map import TensorFiles

FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
DTYPES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"},
    **{torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64", torch.bool: "BOOL"},
    **{torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"},
    **{torch.float8_e4m3fnuz: "F8_E4M3FNUZ", torch.float8_e5m2fnuz: "F8_E5M2FNUZ"},
}


def leaves(value, prefix=""):
    for key, one in value.items():
        if isinstance(one, dict):
            yield from leaves(one, f"{prefix}{key}.")
        elif isinstance(one, torch.Tensor):
            yield prefix + key, one.detach()


def bits(value):
    """A tensor's or an array's bytes, of numbers of eight bits as float16."""
    if isinstance(value, torch.Tensor):
        value = value.to(torch.float16) if "float8" in str(value.dtype) else value
        value = value.contiguous().reshape(-1).view(torch.uint8).numpy()
    return value.tobytes()


def check_equal(path, found=None):
    """Compares a file with what PyTorch reads of it; returns our tensors."""
    tensors = TensorFiles([path])
    value = torch.load(path, "cpu", weights_only=True) if found is None else found
    expected = dict(leaves(value.get("state_dict", value)))
    assert list(tensors) == list(expected)
    for name, theirs in expected.items():
        ours = tensors.read(name)
        assert tensors.dtype(name) == DTYPES[theirs.dtype], name
        assert tensors.shape(name) == ours.shape == tuple(theirs.shape), name
        assert bits(ours) == bits(theirs), name
        assert ours.flags.aligned
    return tensors


def write(path, value, zipped=True, **arguments):
    torch.save(value, path, _use_new_zipfile_serialization=zipped, **arguments)
    return path


@FORMS
def test_all_types_of_numbers(tmp_path, zipped):
    value = {}
    for index, dtype in enumerate(DTYPES):
        numbers = torch.arange(1, 4 + index, dtype=torch.float32)
        value[str(dtype)] = (numbers % 2 if dtype == torch.bool else numbers).to(dtype)
    # PyTorch writes its newer types in the older form, too, and cannot read them.
    check_equal(write(tmp_path / "all.pt", value, zipped), None if zipped else value)


@FORMS
def test_views_share_storages_and_have_their_strides(tmp_path, zipped):
    base = torch.arange(48, dtype=torch.float32).reshape(4, 3, 4)
    weight = torch.nn.Parameter(torch.randn(5, 3))
    value = {
        "base": base,
        "again": base,
        "transposed": base.transpose(0, 2),
        "permuted": base.permute(2, 0, 1)[1:],
        "every second": base[::2, :, ::3],
        "one": base[3, 2, 3],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 768),
        "empty at the end": base.reshape(-1)[48:],
        "weight": weight,
        "its transpose": weight.data.T,
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "frozen": torch.nn.Parameter(torch.ones(2, dtype=torch.float16), requires_grad=False),
        "": torch.ones(1),
    }
    path = write(tmp_path / "views.bin", value, zipped)
    tensors = check_equal(path)
    if zipped:  # mapped where they lie
        assert np.shares_memory(tensors.read("base"), tensors.read("transposed"))
        assert len({entry.begin for name, entry in tensors._entries.items() if name in ("base", "again")}) == 1
    (whole,) = tensors.maps
    tensors.release("base")
    assert bits(tensors.read("every second")) == bits(value["every second"])
    tensors.read("base")[:] = 0  # only in memory
    assert check_equal(path).maps != {whole}


@FORMS
def test_nested_mappings_have_dotted_names_and_a_wrapper_has_none(tmp_path, zipped):
    state = collections.OrderedDict(a=torch.ones(2), b=torch.zeros(3))
    state._metadata = collections.OrderedDict({"": {"version": 1}})
    check_equal(write(tmp_path / "nested.pth", {"params_ema": state, "params": {"conv": {"w": torch.ones(1)}}}, zipped))
    linear = torch.nn.Linear(3, 2)
    check_equal(write(tmp_path / "module.pth", linear.state_dict(), zipped))
    optimizer = torch.optim.AdamW(linear.parameters())
    linear(torch.ones(3)).sum().backward()
    optimizer.step()
    trainer = {
        "epoch": 7,
        "global_step": 875000,
        "pytorch-lightning_version": "1.4.2",
        "ema": True,
        "state_dict": linear.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"base_lrs": [1e-4], "last_epoch": 3}],
        "hparams": None,
    }
    tensors = check_equal(write(tmp_path / "trainer.ckpt", trainer, zipped))
    assert tensors.metadata == {"epoch": "7", "global_step": "875000", "pytorch-lightning_version": "1.4.2"}


def callbacks(monkeypatch):
    """A module of PyTorch Lightning with its class, whose name is what a file has."""
    import sys

    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    for part in (name, "pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, part, module)
    return module.ModelCheckpoint


@FORMS
def test_what_only_accompanies_tensors_is_inert(tmp_path, zipped, monkeypatch):
    checkpoint = callbacks(monkeypatch)
    kept = checkpoint()
    kept.best = "epoch=1.ckpt"
    state = {
        "w": torch.ones(2),
        "lr": np.float64(1e-4),
        "array": np.arange(3),
        "hparams": argparse.Namespace(a=1, b=[torch.ones(1)]),
        "counts": collections.defaultdict(list, {"x": [1]}),
        "counter": collections.Counter("aab"),
        "set": {1, "a"},
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "raw": b"bytes",
        "dtype": torch.float32,
    }
    value = {"state_dict": state, "callbacks": {checkpoint: {"best": kept, "score": np.float32(0.5)}}}
    path = write(tmp_path / "trainer.ckpt", value, zipped)
    assert list(check_equal(path, value)) == ["w"]
    check_equal(path, value)


@FORMS
def test_parameters_of_an_old_embedding(tmp_path, zipped):
    torn = tensor(of=storage(rest=b"" if zipped else b"N"))
    inner = (
        call("collections.OrderedDict")
        + text("*")
        + call("torch._utils._rebuild_parameter", torn, b"\x88", torch_pieces.ORDERED)
        + b"s"
    )
    state = mapping({"training": b"\x88", "_parameters": inner, "_buffers": call("collections.OrderedDict")})
    body = pickle(
        mapping({"string_to_param": named("torch.nn.modules.container.ParameterDict") + b")\x81" + state + b"b"})
    )
    path = tmp_path / "toy.pt"
    path.write_bytes(saved(body) if zipped else legacy(body))
    tensors = TensorFiles([path])
    assert list(tensors) == ["string_to_param.*"]
    assert np.array_equal(tensors.read("string_to_param.*"), np.arange(8).reshape(2, 4))


def test_a_file_of_python_2(tmp_path):
    """As PyTorch 0.4 wrote it there: short texts of bytes, long numbers, pairs, and a state of an OrderedDict."""

    def short(value):
        return b"U" + bytes([len(value)]) + value.encode()

    def long(value):
        return b"\x8a\x01" + bytes([value])

    numbers = tuple_of(
        short("storage"), named("torch.FloatStorage"), short("1867776752"), short("cuda:0"), long(8), b"N"
    )
    view = call(
        "torch._utils._rebuild_tensor_v2",
        numbers + b"Q",
        number(0),
        tuple_of(long(2), long(4)),
        tuple_of(long(4), long(1)),
        b"\x89",
        b"N",
    )
    pairs = b"](](" + short("w") + view + b"ee"
    body = (
        call("collections.OrderedDict", pairs)
        + mapping([(short("_metadata"), call("collections.OrderedDict", b"]"))])
        + b"b"
    )
    path = tmp_path / "old.pth"
    machine = pickle(mapping([(short("little_endian"), b"\x88"), (short("protocol_version"), b"M\xe9\x03")]))
    path.write_bytes(legacy(pickle(body), pickle(b"](" + short("1867776752") + b"e"), machine=machine))
    tensors = check_equal(path)
    assert tensors.shape("w") == (2, 4)
    assert np.array_equal(tensors.read("w"), np.arange(8).reshape(2, 4))


def test_other_archives_that_say_the_same(tmp_path):
    path = tmp_path / "m.pt"
    summary = struct.pack("<4s3L", b"PK\x07\x08", torch_pieces.zlib.crc32(EIGHT), 32, 32)
    large = struct.pack("<2H2Q", 1, 16, 32, 32)
    change = {"packed": 2**32 - 1, "size": 2**32 - 1, "local_extra": bytes(8)}
    offset = torch_pieces.archive({"m/data.pkl": torch_pieces.GOOD}).index(b"PK\x01\x02")
    archives = [
        saved(
            changes={
                "m/data/0": {"flags": 0x808, "local_crc": 0, "local_packed": 0, "local_size": 0, "behind": summary}
            }
        ),
        saved(changes={"m/data/0": {"local_crc": 0, "local_packed": 0, "local_size": 0}}),
        saved(changes={"m/data/0": {"local_extra": b"FB\4\0ZZZZ"}}),
        saved(changes={"m/data/0": {**change, "extra": large}}),
        torch_pieces.archive(
            {"m/data.pkl": torch_pieces.GOOD, "m/data/0": EIGHT},
            {"m/data/0": {"offset": 2**32 - 1, "extra": struct.pack("<2HQ", 1, 8, offset)}},
        ),
    ]
    for content in archives:
        path.write_bytes(content)
        assert np.array_equal(TensorFiles([path]).read("a"), np.arange(8).reshape(2, 4))


def test_content_decides_and_not_the_name(tmp_path):
    path = write(tmp_path / "model.safetensors", {"a": torch.ones(3)})
    assert list(TensorFiles([path])) == ["a"]
    other = write(tmp_path / "b.pt", {"b": torch.ones(3)})
    assert list(TensorFiles([path, other])) == ["a", "b"]
    with pytest.raises(ModelError, match="duplicate tensor a"):
        TensorFiles([path, path])


PICKLE = "is a pickle checkpoint, which can run code when it is read"


def test_what_is_no_plain_file_of_tensors_is_one_line(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = {
            "quantised": ({"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, "of quantised numbers"),
            "sparse": ({"a": torch.eye(3).to_sparse()}, "of sparse tensors"),
            "compressed": ({"a": torch.eye(3).to_sparse_csr()}, "of sparse tensors"),
            "complex": ({"a": torch.ones(3, dtype=torch.complex64)}, "of complex numbers"),
            "without values": ({"a": torch.ones(3, device="meta")}, "of tensors without values"),
            "negated": (
                {"a": torch.ones(3, dtype=torch.complex64).conj().imag},
                "names torch.ComplexFloatStorage|metadata",
            ),
            "a module": (
                torch.nn.Linear(2, 2),
                r"names torch\.nn\.modules\.linear\.Linear, which is no part of a file",
            ),
            "expanded": ({"a": torch.ones(1).expand(4)}, "repeats its numbers"),
            "a list": ([torch.ones(3)], "has no tensors with names"),
            "a tensor": (torch.ones(3), "has no tensors with names"),
            "an attribute": ({"a": argparse.ArgumentParser}, r"names argparse\.ArgumentParser"),
        }
        for name, (value, _) in values.items():
            write(tmp_path / f"{name}.pt", value)
        for protocol in (3, 4, 5):
            values[f"protocol {protocol}"] = (None, f"pickle protocol {protocol}, and PyTorch's own is 2")
            write(tmp_path / f"protocol {protocol}.pt", {"a": torch.ones(3)}, pickle_protocol=protocol)
    with tarfile.open(tmp_path / "tar.pt", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    for name, (_, said) in (values | {"tar": (None, "an archive of tar")}).items():
        with pytest.raises(
            ModelError, match=f"{name}.pt {PICKLE}: .*{said}.*; use a .safetensors file instead"
        ) as caught:
            TensorFiles([tmp_path / f"{name}.pt"])
        assert len(str(caught.value).splitlines()) == 1
