"""Several sets of weights in one model: which are taken, and what is said."""

from __future__ import annotations

import json
import shutil

import pytest
from fake_hub import lines_of, serve, start_opening
from safetensors.numpy import load_file, save_file

from kerasdiff.checkpoints.formats.diffusers_folder import COMPONENTS, variants
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.errors import ModelError

STEM = "diffusion_pytorch_model"
NETWORKS = ("text_encoder", "unet", "decoder")
SHARDED = f"{STEM}.safetensors.index.fp16.json"


def weights(folder, network):
    return folder / COMPONENTS[network].folder / f"{COMPONENTS[network].stem}.safetensors"


def rename(folder, network, variant, keep=False):
    """A network's weights as a variant."""
    plain = weights(folder, network)
    (shutil.copy if keep else shutil.move)(plain, plain.with_suffix(f".{variant}.safetensors"))


def shard(folder, variant):
    """The U-Net's weights as a variant in two files, under the names that diffusers gives them."""
    path = weights(folder, "unet")
    tensors = load_file(path)
    path.unlink()
    names = sorted(tensors)
    shards = [f"{STEM}.{variant}-0000{number}-of-00002.safetensors" for number in (1, 2)]
    placed = {name: shards[index % 2] for index, name in enumerate(names)}
    for one in shards:
        save_file({name: tensors[name] for name in names if placed[name] == one}, path.parent / one)
    (path.parent / f"{STEM}.safetensors.index.{variant}.json").write_text(json.dumps({"weight_map": placed}))


def files(model):
    return {network: [path.name for path in model.files(network)] for network in NETWORKS}


def test_the_files_of_a_component():
    names = [
        *(f"{STEM}.safetensors", f"{STEM}.bin", f"{STEM}.fp16.bin", f"{STEM}.fp16.safetensors", "config.json", SHARDED),
        *(f"{STEM}.safetensors.index.json", f"{STEM}-00001-of-00002.safetensors", "other.fp16.safetensors"),
        *(f"{STEM}.bf16-00001-of-00002.safetensors", f"{STEM}.safetensors.index.bf16.json", f"{STEM}.old.safetensors"),
        f"{STEM}.non_ema.safetensors.index.json",
    ]
    assert variants(names, STEM) == {
        None: f"{STEM}.safetensors",
        "fp16": f"{STEM}.fp16.safetensors",
        "bf16": f"{STEM}.safetensors.index.bf16.json",
        "old": f"{STEM}.old.safetensors",
        "non_ema": f"{STEM}.non_ema.safetensors.index.json",
    }


def test_a_variant_that_all_networks_have(copy_of, warned):
    copy = copy_of()
    for network in NETWORKS:
        rename(copy.folder, network, "fp16", keep=True)
    assert files(copy.open(variant="fp16"))["unet"] == [f"{STEM}.fp16.safetensors"]
    assert files(copy.open())["unet"] == [f"{STEM}.safetensors"]
    assert warned() == []


def test_a_variant_that_one_network_has_is_mixed(copy_of, warned):
    copy = copy_of()
    rename(copy.folder, "unet", "fp16", keep=True)
    found = files(copy.open(variant="fp16"))
    assert found == {
        "text_encoder": ["model.safetensors"],
        "unet": [f"{STEM}.fp16.safetensors"],
        "decoder": [f"{STEM}.safetensors"],
    }
    (line,) = warned()
    assert "has variant 'fp16' of some networks only; taken for the others: text_encoder (plain), vae (plain)" in line


def test_the_only_variant_is_taken(copy_of, warned):
    copy = copy_of()
    rename(copy.folder, "text_encoder", "fp16")
    shard(copy.folder, "fp16")
    model = copy.open()
    assert files(model)["text_encoder"] == ["model.fp16.safetensors"]
    assert files(model)["unet"] == [f"{STEM}.fp16-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (line,) = warned()
    assert line.endswith("has only a variant of some weights, which is taken: text_encoder (fp16), unet (fp16)")
    assert sum(1 for _ in model.parameters("unet")) > 100
    assert files(copy.open(variant="fp16")) == files(model)


def test_several_variants_without_plain_weights(copy_of, warned):
    copy = copy_of()
    rename(copy.folder, "unet", "fp16", keep=True)
    rename(copy.folder, "unet", "non_ema")
    model = copy.open()
    message = rf"has no {STEM}\.safetensors; it has {STEM}\.fp16\.safetensors, {STEM}\.non_ema\.safetensors; choose one"
    with pytest.raises(ModelError, match=message):
        model.files("unet")
    assert files(copy.open(variant="non_ema"))["unet"] == [f"{STEM}.non_ema.safetensors"]
    (line,) = warned()
    assert line.endswith("of some networks only; taken for the others: text_encoder (plain), vae (plain)")


def test_networks_with_a_variant_each(copy_of, warned):
    copy = copy_of()
    rename(copy.folder, "unet", "bf16")
    rename(copy.folder, "decoder", "fp16")
    assert files(copy.open(variant="fp16"))["unet"] == [f"{STEM}.bf16.safetensors"]
    (line,) = warned()
    assert line.endswith("taken for the others: text_encoder (plain), unet (bf16)")


def test_weights_that_are_not_found(copy_of):
    copy = copy_of()
    path = weights(copy.folder, "unet")
    other = path.rename(path.with_name("model.safetensors"))
    with pytest.raises(ModelError, match=r"it has model\.safetensors; rename the right one"):
        copy.open().files("unet")
    index = path.with_name(f"{STEM}.safetensors.index.json")
    index.write_text('{"weight_map": {}}')
    with pytest.raises(ModelError, match="names no files"):
        copy.open().files("unet")
    index.unlink()
    other.rename(path).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(ModelError, match="is a pointer of Git LFS in place of the file; run `git lfs pull`"):
        list(copy.open().parameters("unet"))


def test_a_variant_that_no_network_has(copy_of):
    copy = copy_of()
    with pytest.raises(ModelError, match="has no variant 'fp16' of any network; variants that it has: none"):
        copy.open(variant="fp16")
    rename(copy.folder, "unet", "bf16", keep=True)
    with pytest.raises(ModelError, match="has no variant 'fp16' of any network; variants that it has: 'bf16'"):
        copy.open(variant="fp16")
    assert copy.open(weights="random").files is None


@pytest.mark.parametrize(
    ("variant", "line"),
    [
        ("fp16", "has variant 'fp16' of some networks only; taken for the others: text_encoder (plain), vae (plain)"),
        (None, "has only a variant of some weights, which is taken: unet (fp16)"),
    ],
)
def test_a_repository_s_files_are_chosen_alike(copy_of, tmp_path, variant, line):
    folder = copy_of().folder
    rename(folder, "unet", "fp16")
    with serve(folder) as (endpoint, asked):
        opening = start_opening(tmp_path, endpoint, "org/name", arguments={"variant": variant})
        out, err = lines_of(opening)
    assert out == "org/name (32, 64) False"
    assert line in err
    got = {name.split("/", 4)[4] for name in asked if name.startswith("GET org/name/resolve") and "safetensors" in name}
    assert got == {f"unet/{STEM}.fp16.safetensors", "text_encoder/model.safetensors", f"vae/{STEM}.safetensors"}


def test_a_variant_that_a_repository_does_not_have_costs_no_download(copy_of, tmp_path):
    with serve(copy_of().folder) as (endpoint, asked):
        line, _ = lines_of(start_opening(tmp_path, endpoint, "org/name", arguments={"variant": "fp16"}))
    assert line == "ModelError org/name has no variant 'fp16' of any network; variants that it has: none"
    assert not any(name.endswith(".safetensors") for name in asked)


def test_shards_of_a_repository_s_only_variant(copy_of, tmp_path):
    folder = copy_of().folder
    shard(folder, "fp16")
    with serve(folder) as (endpoint, _):
        out, _ = lines_of(start_opening(tmp_path, endpoint, "org/name"))
    assert out == "org/name (32, 64) False"


def test_a_variant_of_what_has_none_is_one_warning(models, warned):
    path = models.single_file("v1")
    for model in (path, "tiny"):
        open_model(model, variant="fp16")
        assert warned() == [f"variant='fp16' has no effect: {model} has one set of weights"]
