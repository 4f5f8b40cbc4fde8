"""Checkpoints of diffusers, as folders and as single files, against the library that made them."""

from __future__ import annotations

import itertools
import json
import pathlib
import pickle
import shutil
import warnings

import checkpoints
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import KINDS, diffusers, torch
from diffusers.loaders import single_file_utils

import kerasdiff
from kerasdiff.checkpoints.export import write_diffusers, write_single_file
from kerasdiff.checkpoints.formats.diffusers_folder import COMPONENTS
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.errors import ModelError
from kerasdiff.models.layers import parameters_of
from kerasdiff.models.networks import make_network, names_of

TEXTS = ["a Red circle, above   it's 🎈 naïve 12", ""]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """kind -> (diffusers' pipeline, its folder)."""
    folder = tmp_path_factory.mktemp("checkpoints")
    pipes = {kind: checkpoints.pipeline(kind, folder / kind / "vocabulary") for kind in KINDS}
    return {kind: (pipe, checkpoints.save(pipe, folder / kind / "model")) for kind, pipe in pipes.items()}


def generator_of(path):
    return kerasdiff.Generator(str(path), precision="float32", jit_compile=False)


def all_parameters(model, network):
    expected = parameters_of(make_network(network, model.config, "float32"))
    source = model.source(network, lambda: expected)
    return {name: np.array(source(name, shape)) for name, shape in expected.items()}


def far(ours, theirs):
    theirs = theirs.detach().numpy() if hasattr(theirs, "detach") else theirs
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def differences(generator, pipe):
    """The largest relative error of each network."""
    rng, found = np.random.default_rng(0), {}
    with torch.no_grad():
        ids = pipe.tokenizer(TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        context = pipe.text_encoder(ids.input_ids)[0]
        found["text_encoder"] = far(generator.encode_text(TEXTS), context)
        x = rng.standard_normal((2, pipe.unet.config.in_channels, 8, 8), "float32")
        for t in (0, 500, 981):
            theirs = pipe.unet(torch.from_numpy(x), t, context).sample.permute(0, 2, 3, 1)
            ours = generator.networks["unet"](x.transpose(0, 2, 3, 1), np.full(2, t, "float32"), context.numpy())
            found[f"unet {t}"] = far(ours, theirs)
        latents = rng.standard_normal((1, 4, 8, 8), "float32")
        theirs = pipe.vae.decode(torch.from_numpy(latents) / pipe.vae.config.scaling_factor).sample
        found["decoder"] = far(generator.networks["decoder"](latents.transpose(0, 2, 3, 1)), theirs.permute(0, 2, 3, 1))
        image = rng.integers(0, 256, (1, 64, 64, 3), dtype="uint8")
        scaled = torch.from_numpy(image.astype("float32") / 127.5 - 1).permute(0, 3, 1, 2)
        theirs = pipe.vae.encode(scaled).latent_dist.mean * pipe.vae.config.scaling_factor
        found["encoder"] = far(generator.encode_image(image), theirs.permute(0, 2, 3, 1))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_network_gives_diffusers_numbers_from_a_folder(made, kind):
    pipe, folder = made[kind]
    generator = generator_of(folder)
    ids = pipe.tokenizer(TEXTS[0]).input_ids
    assert generator.tokenizer.encode(TEXTS[0]) == ids
    for part, error in differences(generator, pipe).items():
        assert error < 1e-4, part


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_a_seed_gives_diffusers_image(made, kind, monkeypatch):
    pipe, folder = made[kind]
    # diffusers looks for the final norm in a part that newer text encoders of transformers are no more apart from.
    monkeypatch.setitem(vars(pipe.text_encoder), "text_model", pipe.text_encoder)
    pipe.set_progress_bar_config(disable=True)
    prompts, generator, drawn = {"prompt": "a red circle", "negative_prompt": "a star"}, generator_of(folder), []
    for clip_skip in (0, 1, 2):
        theirs = pipe(
            **prompts,
            num_inference_steps=6,
            guidance_scale=5.0,
            clip_skip=clip_skip or None,
            generator=torch.Generator().manual_seed(3),
            output_type="np",
        ).images
        ours = generator.generate(
            **prompts, num_steps=6, guidance_scale=5.0, clip_skip=clip_skip, rng="torch", seed=3, progress=False
        )
        assert ours.request.sampler == "pndm"
        assert np.abs(ours.images.astype(int) - np.round(theirs * 255).astype(int)).max() <= 1
        drawn.append(ours.images.astype(int))
    assert all(np.abs(one - other).max() > 1 for one, other in itertools.pairwise(drawn))


def test_the_scheduler_of_the_folder_decides(made, tmp_path):
    pipe, folder = made["v1"]
    kept = pipe.scheduler
    copy, _ = edited(folder, tmp_path)
    for class_name, settings in (
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "timestep_spacing": "leading"}),
        ("DPMSolverSinglestepScheduler", {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"}),
        ("TCDScheduler", {"timestep_spacing": "leading"}),
    ):
        pipe.scheduler = getattr(diffusers, class_name).from_config(kept.config, **settings)
        pipe.scheduler.save_pretrained(copy / "scheduler")
        index = json.loads((copy / "model_index.json").read_text())
        index["scheduler"][1] = class_name
        (copy / "model_index.json").write_text(json.dumps(index))
        seed = torch.Generator().manual_seed(3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = pipe("a red circle", num_inference_steps=4, generator=seed, output_type="latent").images
        ours = generator_of(copy).generate("a red circle", num_steps=4, rng="torch", seed=3, progress=False).latents
        assert far(ours, theirs.permute(0, 2, 3, 1)) < 1e-4, class_name
    pipe.scheduler = kept


def test_the_configuration_is_the_folders(made):
    _, folder = made["v2"]
    config = open_model(str(folder)).config
    assert config.unet.num_heads == (1, 2)
    assert config.unet.attention == (True, False)
    assert config.text_encoder.mlp_width == 37
    assert config.schedule.prediction_type == "v_prediction"
    assert (config.schedule.steps_offset, config.schedule.set_alpha_to_one) == (1, False)
    assert (config.defaults.sampler, config.defaults.height) == ("pndm", 64)
    assert open_model(str(made["inpainting"][1])).config.unet.in_channels == 9


def edited(folder, tmp_path, network="unet"):
    """A copy of a model folder, and the file of one network in it."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    return copy, copy / COMPONENTS[network].folder / f"{COMPONENTS[network].stem}.safetensors"


def test_one_swapped_tensor_is_seen(made, tmp_path):
    pipe, folder = made["v1"]
    copy, path = edited(folder, tmp_path)
    tensors = safetensors.numpy.load_file(path)
    first, second = (f"mid_block.resnets.0.conv{number}.weight" for number in (1, 2))
    tensors[first], tensors[second] = tensors[second], tensors[first]
    safetensors.numpy.save_file(tensors, path)
    assert differences(generator_of(copy), pipe)["unet 500"] > 1e-2


def test_half_precision_variants_and_shards(made, tmp_path):
    pipe, folder = made["v1"]
    copy, path = edited(folder, tmp_path)
    tensors = safetensors.numpy.load_file(path)
    names = sorted(tensors)
    path.unlink()
    weight_map = {name: f"part-{index % 2}.safetensors" for index, name in enumerate(names)}
    for shard in set(weight_map.values()):
        chosen = {name: tensors[name] for name in names if weight_map[name] == shard}
        safetensors.numpy.save_file(chosen, path.parent / shard)
    index = path.with_name(path.name + ".index.json")
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert differences(generator_of(copy), pipe)["unet 500"] < 1e-4
    half = tmp_path / "half"
    checkpoints.save(pipe, half)
    for network in ("unet", "text_encoder", "decoder"):
        place, stem = COMPONENTS[network].folder, COMPONENTS[network].stem
        whole = safetensors.numpy.load_file(half / place / f"{stem}.safetensors")
        (half / place / f"{stem}.safetensors").unlink()
        lesser = {name: value.astype("float16") if value.dtype == "float32" else value for name, value in whole.items()}
        safetensors.numpy.save_file(lesser, half / place / f"{stem}.fp16.safetensors")
    model = open_model(str(half), variant="fp16")
    halves = all_parameters(model, "unet")
    for name, value in all_parameters(open_model(str(folder)), "unet").items():
        assert np.array_equal(halves[name], value.astype("float16")), name


def test_bfloat16_files(made, tmp_path):
    pipe, folder = made["v1"]
    copy, path = edited(folder, tmp_path)
    from safetensors.torch import save_file

    save_file({name: value.to(torch.bfloat16).contiguous() for name, value in pipe.unet.state_dict().items()}, path)
    halves = all_parameters(open_model(str(copy)), "unet")
    name = "unet.conv_in.kernel"
    expected = pipe.unet.conv_in.weight.to(torch.bfloat16).float().detach().numpy().transpose(2, 3, 1, 0)
    assert np.array_equal(halves[name].astype("float32"), expected)
    assert differences(generator_of(copy), pipe)["unet 500"] < 3e-2


def test_the_autoencoders_old_names(made, tmp_path):
    pipe, folder = made["v1"]
    copy, path = edited(folder, tmp_path, "decoder")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, value in safetensors.numpy.load_file(path).items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        tensors[name] = value
    safetensors.numpy.save_file(tensors, path)
    found = differences(generator_of(copy), pipe)
    assert max(found["decoder"], found["encoder"]) < 1e-4


def test_what_does_not_fit_is_named_before_anything_is_read(made, tmp_path):
    _, folder = made["v1"]
    copy, path = edited(folder, tmp_path)
    tensors = safetensors.numpy.load_file(path)
    tensors["extra.weight"] = np.zeros(3, "float32")
    tensors["conv_in.weight"] = np.zeros((32, 5, 3, 3), "float32")
    tensors["conv_in.bias"] = np.zeros(32, "int32")
    del tensors["conv_out.bias"], tensors["conv_out.weight"]
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(ModelError) as caught:
        generator_of(copy)
    message = str(caught.value)
    assert "\n" not in message
    assert f"{path} does not fit the model" in message
    for part in (
        "conv_in.weight has shape [32, 5, 3, 3], which does not make [3, 3, 4, 32]",
        "conv_in.bias holds I32, not floating-point numbers",
        "conv_out.weight is missing",
        "conv_out.bias is missing",
        "extra.weight is not part of this model",
    ):
        assert part in message


def test_pickles_are_refused_by_content(made, tmp_path):
    _, folder = made["v1"]
    copy, path = edited(folder, tmp_path)
    path.unlink()
    torch.save({"x": torch.zeros(2)}, path.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"unet/diffusion_pytorch_model\.bin does not fit the model"):
        generator_of(copy)
    torch.save({"x": torch.nn.Linear(1, 1)}, path.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"is a pickle checkpoint, which can run code .* it names torch\.nn"):
        generator_of(copy)
    path.write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(ModelError, match="is a pickle checkpoint, which can run code"):
        generator_of(copy)
    renamed = tmp_path / "model.ckpt"
    renamed.write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(ModelError, match="is a pickle checkpoint"):
        open_model(str(renamed))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("unet/config.json", {"addition_embed_type": "text_image"}, "addition_embed_type='text_image' is not supp"),
        ("unet/config.json", {"down_block_types": ["AttnDownBlock2D"] * 2}, "block type 'AttnDownBlock2D' is not supp"),
        ("unet/config.json", {"block_out_channels": "many"}, "block_out_channels='many' is not of the expected kind"),
        ("unet/config.json", {"layers_per_block": 10**9}, "layers_per_level=1000000000 is out of range"),
        ("vae/config.json", {"shift_factor": 0.1}, "shift_factor=0.1 is not supported"),
        ("text_encoder/config.json", {"hidden_act": "relu"}, "unknown activation 'relu'; known: quick_gelu"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "cubic"}, "unknown beta schedule 'cubic'"),
    ],
)
def test_what_is_not_supported_is_named(made, tmp_path, file, change, message):
    copy, _ = edited(made["v1"][1], tmp_path)
    path = copy / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelError) as caught:
        open_model(str(copy))
    assert message in str(caught.value)


def test_folders_that_are_no_models(tmp_path):
    with pytest.raises(ModelError, match=r"is not a model folder: it has neither unet/config\.json nor config\.json"):
        open_model(str(tmp_path))
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("[1, 2]")
    with pytest.raises(ModelError, match=r"holds list, not a JSON object"):
        open_model(str(tmp_path))
    (tmp_path / "unet" / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"is not JSON"):
        open_model(str(tmp_path))


def same_state(ours, theirs):
    ours = {name: value for name, value in ours.items() if not name.endswith("position_ids")}
    theirs = {name.removeprefix("text_model."): value for name, value in theirs.items()}
    ours = {name.removeprefix("text_model."): value for name, value in ours.items()}
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert np.array_equal(np.asarray(ours[name]).reshape(value.shape), value.numpy()), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_file_is_what_diffusers_converts_back(made, tmp_path, kind):
    """Their own functions for the original layout give back every tensor that they started from."""
    pipe, folder = made[kind]
    path = tmp_path / "model.safetensors"
    write_single_file(open_model(str(folder)), path)
    from safetensors.torch import load_file

    file = load_file(path)
    unet = single_file_utils.convert_ldm_unet_checkpoint(dict(file), dict(pipe.unet.config))
    same_state(unet, pipe.unet.state_dict())
    vae = single_file_utils.convert_ldm_vae_checkpoint(dict(file), dict(pipe.vae.config))
    same_state(vae, pipe.vae.state_dict())
    if kind != "v2":
        text = single_file_utils.convert_ldm_clip_checkpoint(dict(file))
        same_state(text, pipe.text_encoder.state_dict())
    else:
        text = single_file_utils.convert_open_clip_checkpoint(
            pipe.text_encoder, dict(file), prefix="cond_stage_model.model."
        )
        last = {
            name: value
            for name, value in text.items()
            if f"layers.{pipe.text_encoder.config.num_hidden_layers}" not in name
        }
        same_state(
            {name: value for name, value in last.items() if "text_projection" not in name},
            pipe.text_encoder.state_dict(),
        )


@pytest.mark.parametrize("kind", KINDS)
def test_folder_to_single_file_to_folder_is_bit_equal(made, tmp_path, kind):
    _, folder = made[kind]
    model = open_model(str(folder))
    path = tmp_path / "model.safetensors"
    write_single_file(model, path)
    single = open_model(str(path))
    assert single.config.unet == model.config.unet
    assert single.config.vae == model.config.vae
    assert single.config.text_encoder == model.config.text_encoder
    assert single.config.schedule == model.config.schedule
    write_diffusers(single, tmp_path / "again")
    again = open_model(str(tmp_path / "again"))
    for network in names_of(single.config):
        expected = all_parameters(model, network)
        for other in (single, again):
            for name, value in all_parameters(other, network).items():
                assert np.array_equal(value, expected[name]), name


def test_diffusers_reads_the_folder_that_is_written(made, tmp_path):
    pipe, folder = made["v2"]
    write_diffusers(open_model(str(folder)), tmp_path / "written")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "written", local_files_only=True)
    for part in ("unet", "vae", "text_encoder"):
        same_state(getattr(again, part).state_dict(), getattr(pipe, part).state_dict())
    assert (
        again.tokenizer(TEXTS, padding="max_length").input_ids == pipe.tokenizer(TEXTS, padding="max_length").input_ids
    )
    assert again.scheduler.config.prediction_type == "v_prediction"


def test_other_files_are_no_checkpoints(made, tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"weight": np.zeros(3, "float32")}, path)
    with pytest.raises(ModelError, match=r"is no Stable Diffusion checkpoint: it has no model\.diffusion_model"):
        open_model(str(path))
    path.write_bytes(pathlib.Path(__file__).read_bytes())
    with pytest.raises(ModelError, match="is corrupt or incomplete"):
        open_model(str(path))
