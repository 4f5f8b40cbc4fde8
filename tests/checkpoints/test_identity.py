"""What tells one model's parameters from another's."""

from __future__ import annotations

import dataclasses
import re
import shutil

import pytest

from kerasdiff.checkpoints.fingerprint import PIECE, PIECES, identity
from kerasdiff.checkpoints.resolve import TINY_FOLDER, open_model
from kerasdiff.errors import ModelError
from kerasdiff.models.config import TINY
from kerasdiff.models.networks import text_to_image

TEXT_TO_IMAGE = text_to_image(TINY)


def reading(paths):
    """The embedded model, said to be read from other files: network -> paths."""
    return dataclasses.replace(open_model("tiny"), files=paths.__getitem__, stamps=None)


@pytest.fixture
def files(tmp_path):
    """A file of 100 kB for each network."""
    paths = {}
    for number, network in enumerate((*TEXT_TO_IMAGE, "encoder")):
        paths[network] = [tmp_path / f"{network}.safetensors"]
        paths[network][0].write_bytes(bytes([number]) * 100_000)
    return paths


def test_the_embedded_model_has_one_and_a_copy_has_the_same(tmp_path):
    found = identity(reading({network: [TINY_FOLDER / f"{network}.safetensors"] for network in TEXT_TO_IMAGE}))
    assert re.fullmatch("[0-9a-f]{64}", found)
    copies = {network: [tmp_path / f"another name {network}.bin"] for network in TEXT_TO_IMAGE}
    for network, (copy,) in copies.items():
        shutil.copy(TINY_FOLDER / f"{network}.safetensors", copy)
    assert identity(reading(copies)) == found


@pytest.mark.parametrize("network", TEXT_TO_IMAGE)
@pytest.mark.parametrize("place", [0, 1, 50_000, 65_535, 65_536, 99_999])
def test_every_byte_of_a_small_file_counts(files, network, place):
    before = identity(reading(files))
    content = bytearray(files[network][0].read_bytes())
    content[place] ^= 1
    files[network][0].write_bytes(content)
    assert identity(reading(files)) != before


def test_size_order_and_network_count(files):
    found = {identity(reading(files))}
    with open(files["unet"][0], "ab") as file:
        file.write(b"\1")
    found.add(identity(reading(files)))
    found.add(identity(reading({**files, "unet": files["decoder"], "decoder": files["unet"]})))
    shards = files["unet"] + files["text_encoder"]
    found.add(identity(reading({**files, "unet": shards})))
    found.add(identity(reading({**files, "unet": shards[::-1]})))
    found.add(identity(reading({**files, "text_encoder": shards[::-1], "unet": files["decoder"]})))
    found.add(identity(reading({**files, "unet": files["unet"] + files["decoder"]})))
    assert len(found) == 7


def test_the_encoder_is_not_asked_for(files):
    before = identity(reading(files))
    del files["encoder"]
    assert identity(reading(files)) == before


def test_a_file_of_64_gigabytes_is_read_at_34_places(files):
    path, size = files["unet"][0], 2**36
    with open(path, "wb") as file:
        file.truncate(size)
    before = identity(reading(files))
    gap = (size - PIECE) / (PIECES - 1)
    read = [0, PIECE - 1, size - PIECE, size - 1, *(int(number * gap) + 7 for number in range(1, PIECES - 1))]
    found = {before}
    with open(path, "r+b") as file:
        for place in read:
            file.seek(place)
            file.write(b"\1")
            file.flush()
            found.add(identity(reading(files)))
            file.seek(place)
            file.write(b"\0")
        file.seek(PIECE)
        file.write(b"\1")
    assert len(found) == 1 + len(read)
    assert identity(reading(files)) == before


def test_random_parameters_are_called_so():
    assert identity(open_model("tiny", weights="random")) == "random"


def test_parameters_that_may_change_have_none():
    live = dataclasses.replace(open_model("tiny"), source=lambda network, shapes: lambda name, shape: 0, files=None)
    assert identity(live) is None


def test_a_missing_file_is_named(files):
    files["unet"][0].unlink()
    with pytest.raises(ModelError, match=r"unet\.safetensors cannot be read: No such file"):
        identity(reading(files))
