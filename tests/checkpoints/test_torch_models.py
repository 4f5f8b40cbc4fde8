"""Models, LoRAs and embeddings in PyTorch's files: as in safetensors, bit by bit, from a disk and from the hub."""

from __future__ import annotations

import json
import shutil

import checkpoints
import numpy as np
import pytest
import safetensors.torch
from checkpoints import torch
from fake_hub import BRANCH, lines_of, serve, start

from kerasdiff.adapter_files import EmbeddingFile, split_embedding
from kerasdiff.adapters.file_search import find_lora, sha256
from kerasdiff.adapters.lora_file import read_lora
from kerasdiff.adapters.textual_inversion import read_embeddings
from kerasdiff.batch.file_names import adapter_path
from kerasdiff.checkpoints import hub, weight_cache
from kerasdiff.checkpoints.resolve import is_current, open_model
from kerasdiff.convert import convert
from kerasdiff.errors import ModelError
from kerasdiff.models.config import SD_V1
from kerasdiff.runtime.precision import Execution

NETWORKS = ("text_encoder", "unet", "decoder", "encoder", "safety_checker")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same pipeline in safetensors and in PyTorch's files."""
    made = tmp_path_factory.mktemp("torch")
    pipe = checkpoints.with_safety_checker(checkpoints.pipeline("v1", made / "vocabulary"))
    return {
        "new": checkpoints.save(pipe, made / "new"),
        "old": checkpoints.save_old(pipe, made / "old"),
        "sharded": checkpoints.save_old(pipe, made / "sharded", max_shard_size="1MB"),
        "variant": checkpoints.save_old(pipe, made / "variant", variant="fp16", max_shard_size="3MB"),
    }


def copied(model, network):
    return {name: np.array(value) for name, value in model.parameters(network)}


@pytest.fixture(scope="module")
def twin(folders):
    """The configuration and the tensors of the folder in safetensors."""
    model = open_model(folders["new"])
    return model.config, {network: copied(model, network) for network in NETWORKS}


@pytest.mark.parametrize(
    ("kind", "variant"), [("old", None), ("sharded", None), ("variant", "fp16"), ("variant", None)]
)
def test_a_folder_of_bin_files_is_its_twin(folders, twin, kind, variant, warned):
    config, tensors = twin
    old = open_model(folders[kind], variant=variant)
    assert not list(folders[kind].rglob("*.safetensors"))
    assert old.config == config
    for network in NETWORKS:
        ours, theirs = copied(old, network), tensors[network]
        assert ours.keys() == theirs.keys()
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs), network
    assert [line for line in warned() if "only a variant" not in line] == []


def test_bin_files_count_where_there_is_no_safetensors_file(folders, tmp_path, warned):
    mixed = shutil.copytree(folders["old"], tmp_path / "mixed")
    shutil.copy(folders["new"] / "unet" / "diffusion_pytorch_model.safetensors", mixed / "unet")
    shutil.copy(mixed / "vae" / "diffusion_pytorch_model.bin", mixed / "vae" / "diffusion_pytorch_model.fp16.bin")
    names = {name: [path.name for path in open_model(mixed).files(name)] for name in ("unet", "decoder")}
    assert names == {"unet": ["diffusion_pytorch_model.safetensors"], "decoder": ["diffusion_pytorch_model.bin"]}
    (path,) = open_model(mixed, variant="fp16").files("decoder")
    assert path.name == "diffusion_pytorch_model.fp16.bin"
    assert any("has variant 'fp16' of some networks only" in line for line in warned())
    model = open_model(mixed)
    assert is_current(model)
    torch.save({}, mixed / "vae" / "diffusion_pytorch_model.bin")
    assert not is_current(model)
    with pytest.raises(ModelError, match="has changed since"):
        model.check_unchanged("decoder")


def test_bin_files_are_cached_like_others(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("KERASDIFF_CACHE", str(tmp_path))
    monkeypatch.setattr(weight_cache, "_LEAST_BYTES", 0)
    for kind in ("new", "old"):
        open_model(folders[kind]).build("unet", Execution("CPU", "bfloat16", False))
    one, other = (path.read_bytes() for path in (tmp_path / "weights").iterdir())
    assert one == other


def checkpoint_of(path, to, zipped=True, step=None):
    """A trainer's file of a single file's tensors, with a copy of the weights and what else there is."""
    tensors = safetensors.torch.load_file(path)
    copies = {
        f"model_ema.{name.replace('.', '')}": value for name, value in tensors.items() if "diffusion_model" in name
    }
    state = tensors | copies | {"model_ema.decay": torch.tensor(0.9999), "betas": torch.linspace(0, 1, 1000).double()}
    value = {
        "epoch": 142,
        "state_dict": state,
        "callbacks": {},
        "optimizer_states": [{"state": {}, "x": torch.ones(9)}],
    }
    value |= {} if step is None else {"global_step": step}
    torch.save(value, to, _use_new_zipfile_serialization=zipped)
    return to


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_ckpt_is_its_twin(models, tmp_path, zipped, warned):
    new = open_model(models.single_file("v1"))
    path = checkpoint_of(models.single_file("v1"), tmp_path / "model.ckpt", zipped)
    with pytest.warns(UserWarning, match="only prompt_embeds can be used"):  # the embedded vocabulary is in metadata
        old = open_model(path)
    assert old.config.unet == new.config.unet
    for network in NETWORKS[:4]:
        ours, theirs = copied(old, network), copied(new, network)
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs), network
    assert not any("not used" in line for line in warned())
    with pytest.warns(UserWarning, match="only prompt_embeds"):
        convert(str(path), tmp_path / "again.safetensors", dtype="float32")
    again = safetensors.torch.load_file(tmp_path / "again.safetensors")
    theirs = safetensors.torch.load_file(models.single_file("v1"))
    assert all(torch.equal(again[name], theirs[name].float()) for name in again)


def test_a_step_beside_the_tensors_tells_the_base_model(models, tmp_path):
    found = {}
    for step in (875_000, 100, None):
        path = checkpoint_of(models.single_file("v2"), tmp_path / f"{step}.ckpt", step=step)
        with pytest.warns(UserWarning, match="only prompt_embeds can be used"):
            found[step] = open_model(path).config.schedule.prediction_type
    assert found == {875_000: "epsilon", 100: "v_prediction", None: "v_prediction"}


def test_a_folder_of_a_ckpt_names_it(models, tmp_path):
    path = checkpoint_of(models.single_file("v1"), tmp_path / "model.ckpt")
    with pytest.raises(ModelError, match=rf"is not a model folder, but has files that may be models: .* {path}$"):
        open_model(tmp_path)


def test_loras_and_embeddings_are_their_twins(tmp_path, monkeypatch):
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    lora = {f"{name}.{part}.weight": torch.randn(4, 4) for part in ("lora_up", "lora_down")} | {
        f"{name}.alpha": torch.tensor(2.0)
    }
    safetensors.torch.save_file(lora, tmp_path / "lora.safetensors")
    for zipped, file in ((True, "a.pt"), (False, "b.ckpt")):
        torch.save(lora, tmp_path / file, _use_new_zipfile_serialization=zipped)
        one, other = read_lora(tmp_path / file), read_lora(tmp_path / "lora.safetensors")
        assert one.summary == other.summary
        module = one._modules[0]
        assert all(np.array_equal(one._read(module, part), other._read(module, part)) for part in module.keys)
        assert one.data_sha256 == one.sha256 == sha256(tmp_path / file)  # as AUTOMATIC1111's interface names it
        assert find_lora(str(tmp_path / file.partition(".")[0])) == tmp_path / file
    peft = tmp_path / "peft"
    peft.mkdir()
    torch.save({key: value for key, value in lora.items() if "alpha" not in key}, peft / "adapter_model.bin")
    (peft / "adapter_config.json").write_text(json.dumps({"lora_alpha": 3, "r": 4}))
    assert read_lora(find_lora(str(peft))).summary["alphas"] == [3.0]
    assert split_embedding(f"{tmp_path}/a:toy.ckpt") == (f"{tmp_path}/a:toy.ckpt",)
    assert adapter_path(tmp_path, "peft/adapter_model") == f"{peft}/adapter_model"  # and no name on the hub
    vectors = torch.randn(3, 768)
    files = {
        "learned_embeds.bin": {"<toy>": vectors},
        "toy.pt": {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": torch.nn.Parameter(vectors)},
            **{"name": "toy", "step": 500, "sd_checkpoint": "abc", "sd_checkpoint_name": "v1-5"},
        },
        "kohya.pt": {"emb_params": vectors},
    }
    for file, value in files.items():
        torch.save(value, tmp_path / file)
        (word,) = read_embeddings(EmbeddingFile(str(tmp_path / file)), SD_V1)
        assert word.triggers[0] == ("<toy>" if "learned" in file else file.partition(".")[0])
        assert np.array_equal(word.vectors, vectors.numpy())
        assert (word.steps, word.trained_on) == ((500, "v1-5") if file == "toy.pt" else (None, None))
    monkeypatch.setattr(hub, "fetch_adapter", lambda name, usual: tmp_path / usual[-1])
    assert read_embeddings(EmbeddingFile("org/cat-toy"), SD_V1)[0].triggers[0] == "<toy>"


# Opens models one after the other; a line of JSON has what came of each, and what was logged.
OPEN_ALL = """
import json, logging, sys, warnings
from kerasdiff.errors import ModelError
from kerasdiff.adapters.file_search import find_lora
from kerasdiff.checkpoints import hub
from kerasdiff.checkpoints.resolve import is_current, open_model
lines, found = [], []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logger = logging.getLogger("kerasdiff")
logger.addHandler(handler)
logger.setLevel(logging.INFO)
logger.propagate = False
for name, arguments in json.loads(sys.argv[1]):
    lines.clear()
    try:
        if arguments == "lora":
            result = [find_lora(name).name]
        elif arguments == "vae":
            model = open_model("tiny", vae=name)
            names = sorted({path.name for half in ("decoder", "encoder") for path in model.files(half)})
            result = [names, is_current(model)]
        else:
            model = open_model(name, **arguments)
            networks = ("text_encoder", "unet", "decoder")
            names = sorted({path.name for network in networks for path in model.files(network)})
            result = [model.name, names, is_current(model)]
    except ModelError as error:
        result = str(error)
    found.append([result, [line for line in lines if "licence" not in line]])
print(json.dumps(found))
"""


def open_all(home, endpoint, models, **environment):
    return json.loads(lines_of(start(home, endpoint, "-c", OPEN_ALL, json.dumps(models), **environment))[0])


@pytest.fixture(scope="module")
def repositories(folders, models, tmp_path_factory):
    """Repositories of the names that well-known guides have, with files of the kinds that were in them."""
    place = tmp_path_factory.mktemp("repositories")
    v15 = shutil.copytree(folders["old"], place / "v15")
    shutil.copytree(folders["new"], v15, dirs_exist_ok=True)
    checkpoint_of(models.single_file("v1"), v15 / "v1-5-pruned.ckpt")
    shutil.copy(models.single_file("v1"), v15 / "v1-5-pruned.safetensors")
    clip = place / "clip"
    clip.mkdir()
    (clip / "config.json").write_text(json.dumps({"architectures": ["CLIPModel"], "model_type": "clip"}))
    torch.save(
        {"logit_scale": torch.ones(()), "text_model.final_layer_norm.bias": torch.ones(4)}, clip / "pytorch_model.bin"
    )
    pokemon = place / "pokemon"
    pokemon.mkdir()
    (pokemon / "README.md").write_text("# Stable Diffusion for Pokemon")
    (pokemon / "pokemon.yaml").write_text("model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n")
    checkpoint_of(models.single_file("v1"), pokemon / "ema-only-epoch=000142.ckpt")
    several = shutil.copytree(pokemon, place / "several")
    shutil.copy(pokemon / "ema-only-epoch=000142.ckpt", several / "epoch=000142.ckpt")
    lora = place / "lora"
    lora.mkdir()
    torch.save({"x.lora_up.weight": torch.ones(1, 1)}, lora / "pytorch_lora_weights.bin")
    half = place / "half"
    half.mkdir()
    shutil.copy(folders["old"] / "vae" / "config.json", half)
    shutil.copy(folders["old"] / "vae" / "diffusion_pytorch_model.bin", half / "diffusion_pytorch_model.fp16.bin")
    pair, state = place / "pair", checkpoints.diffusers.AutoencoderTiny().state_dict()
    pair.mkdir()
    for name, first in (("encoder", 0), ("decoder", 1)):
        parts = [(key.split(".", 3), value) for key, value in state.items() if key.startswith(f"{name}.")]
        named = {f"{int(index) + first}.{rest}": value for (_, _, index, rest), value in parts}
        torch.save(named, pair / f"taesd_{name}.pth")
    return {
        "CompVis/stable-diffusion-v1-4@fp16": folders["old"],
        "CompVis/stable-diffusion-v1-4": folders["new"],
        "runwayml/stable-diffusion-v1-5": v15,
        "openai/clip-vit-large-patch14": clip,
        "justinpinkney/pokemon-stable-diffusion": pokemon,
        "justinpinkney/several": several,
        "org/lora": lora,
        "org/vae": folders["old"] / "vae",
        "org/half": half,
        "org/pair": pair,
        "org/whole": folders["new"],
    }


BINS = ["diffusion_pytorch_model.bin", "pytorch_model.bin"]
SAFE = ["diffusion_pytorch_model.safetensors", "model.safetensors"]


def test_the_names_of_the_guides(repositories, folders, tmp_path):
    pokemon, file = "justinpinkney/pokemon-stable-diffusion", "ema-only-epoch=000142.ckpt"
    v14 = "CompVis/stable-diffusion-v1-4"
    with serve(folders["new"], others=repositories) as (endpoint, asked):
        found = open_all(
            tmp_path,
            endpoint,
            [
                ("runwayml/stable-diffusion-v1-5", {}),
                ("openai/clip-vit-large-patch14", {}),
                (v14, {}),
                (v14, {"revision": "fp16"}),
                (pokemon, {}),
                (f"{pokemon}/{file}", {}),
                ("justinpinkney/several", {}),
                ("org/lora", "lora"),
                *((f"org/{name}", "vae") for name in ("vae", "half", "pair", "whole")),
            ],
        )
        # Where there are both kinds, and in what does not open, nobody asks for PyTorch's.
        bins = {line for line in asked if line.startswith("GET") and line.endswith(".bin")}
        assert {line.split("/resolve/")[0] for line in bins} == {
            *(f"GET {v14}", "GET org/lora", "GET org/vae", "GET org/half")
        }
        assert all(f"/{BRANCH}/" in line for line in bins if v14 in line)
        assert not any("v1-5-pruned" in line for line in asked)
    again = open_all(tmp_path, endpoint, [(pokemon, {}), (v14, {"revision": "fp16"})], HF_HUB_OFFLINE="1")
    outcomes, said = zip(*found, strict=True)
    assert outcomes == (
        ["runwayml/stable-diffusion-v1-5", SAFE, True],
        "openai/clip-vit-large-patch14 is a whole CLIP, not a whole model: give the whole model that it belongs to, "
        "as a folder of diffusers or a single file, whose text encoder may be such a CLIP",
        [v14, SAFE, True],
        [v14, BINS, True],
        [pokemon, [file], True],
        [f"{pokemon}/{file}", [file], True],
        "justinpinkney/several is not in diffusers' layout, but has files that may be models: give one of them, "
        "justinpinkney/several/ema-only-epoch=000142.ckpt, justinpinkney/several/epoch=000142.ckpt",
        ["pytorch_lora_weights.bin"],
        [["diffusion_pytorch_model.bin"], True],
        [["diffusion_pytorch_model.fp16.bin"], True],
        [["taesd_decoder.pth", "taesd_encoder.pth"], True],
        [["diffusion_pytorch_model.safetensors"], True],
    )
    downloaded = {
        3: f"{v14} has no .safetensors file of this; text_encoder/pytorch_model.bin and 3 more are",
        4: f"{pokemon} has no .safetensors file of this; {file} is",
        7: "org/lora has no .safetensors file of this; pytorch_lora_weights.bin is",
    }
    for index, lines in enumerate(said):
        assert lines == ([f"{downloaded[index]} downloaded, and read as data"] if index in downloaded else [])
    assert [one[0] for one in again] == [outcomes[4], outcomes[3]]  # without a network the cache is enough
