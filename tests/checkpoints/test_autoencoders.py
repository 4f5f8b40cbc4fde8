"""Other autoencoders in place of a model's own: each way that they are published, against diffusers."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import types

import checkpoints
import numpy as np
import pytest
import safetensors.torch
from checkpoints import diffusers, torch
from fake_hub import line_of, serve, start_opening
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import kerasdiff
from kerasdiff import api, info
from kerasdiff.batch import Row
from kerasdiff.batch import run as run_job
from kerasdiff.batch.ray import driver, map_batches
from kerasdiff.checkpoints import vae_files, weight_cache
from kerasdiff.checkpoints.formats import keras_cv_live
from kerasdiff.checkpoints.resolve import is_current, open_model
from kerasdiff.cli import generate_command
from kerasdiff.cli.options import GENERATE
from kerasdiff.convert import PROGRAM as CONVERT
from kerasdiff.convert import convert
from kerasdiff.convert import main as convert_main
from kerasdiff.diffusion.memory_model import MemoryModel
from kerasdiff.errors import ModelError, NonFiniteError, RequestError
from kerasdiff.models.config import SD_V1, SD_V1_VAE
from kerasdiff.models.footprint import decoder_bytes
from kerasdiff.models.network_configs import TinyVAEConfig, VAEConfig
from kerasdiff.runtime.batch_sizer import MicroBatch

QUICK = {"num_steps": 2, "seed": 3, "progress": False}
RUNS = {"precision": "float32", "backend": "openvino"}
PROMPT = "a red circle on a blue background"
MSE = {"block_out_channels": (32, 64, 64, 64), "layers_per_block": 1}
BLOCKS = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}


def sequential(state, half):
    """The tensors of a half as the first files number them."""
    found = {}
    for name, tensor in state.items():
        if name.startswith(f"{half}.layers."):
            index, rest = name.removeprefix(f"{half}.layers.").split(".", 1)
            found[f"{int(index) + (half == 'decoder')}.{rest}"] = tensor.clone()
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("autoencoders")


@pytest.fixture(scope="module")
def taesd(place):
    """diffusers' small autoencoder, whose files are there in each layout."""
    torch.manual_seed(1)
    made = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(16,) * 4, num_decoder_blocks=(2, 1, 1, 1)
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter *= 1.8
    made.save_pretrained(place / "folder")
    halves = {half: sequential(made.state_dict(), half) for half in ("encoder", "decoder")}
    (place / "pair").mkdir()
    for half, tensors in halves.items():
        safetensors.torch.save_file(tensors, place / "pair" / f"taesd_{half}.safetensors")
    whole = {f"taesd_{half}.{name}": one for half, tensors in halves.items() for name, one in tensors.items()}
    safetensors.torch.save_file({**whole, "vae_scale": torch.ones(1)}, place / "prefixed.safetensors")
    return made.eval()


@pytest.fixture(scope="module")
def small(taesd, place):
    """The embedded model with it."""
    return kerasdiff.Generator("tiny", vae=place / "folder", **RUNS)


@pytest.fixture(scope="module")
def large(place):
    """diffusers' large autoencoder as a folder without a scaling factor, as the best-known replacement is."""
    torch.manual_seed(2)
    made = diffusers.AutoencoderKL(**MSE, **BLOCKS)
    made.save_pretrained(place / "large")
    settings = json.loads((place / "large" / "config.json").read_text())
    del settings["scaling_factor"]
    (place / "large" / "config.json").write_text(json.dumps(settings))
    return made.eval()


def both_ways(generator, theirs, scale=1.0):
    """How far encoding and decoding are from diffusers'; the second in grey levels."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (1, 64, 96, 3), dtype="uint8")
    latents = 2 * rng.standard_normal((1, 8, 12, 4)).astype("float32")
    with torch.no_grad():
        encoded = theirs.encode(torch.from_numpy(pictures / np.float32(127.5) - 1).permute(0, 3, 1, 2))
        encoded = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
        decoded = theirs.decode(torch.from_numpy(latents / np.float32(scale)).permute(0, 3, 1, 2)).sample
    images = np.clip(np.round((decoded.permute(0, 2, 3, 1).numpy() + 1) * 127.5), 0, 255)
    assert np.ptp(images) > 100
    return (
        np.abs(generator.encode_image(pictures) - encoded.permute(0, 2, 3, 1).numpy() * scale).max(),
        np.abs(generator.decode(latents) - images).max(),
    )


def values(model, *networks):
    return {name: np.array(value) for network in networks for name, value in model.parameters(network)}


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_a_small_one_gives_diffusers_numbers_both_ways(taesd, small, place):
    for generator in (
        small,
        kerasdiff.Generator("tiny", vae=place / "folder", precision="float32", jit_compile=False),
    ):
        encoding, decoding = both_ways(generator, taesd)
        assert encoding < 1e-4
        assert decoding <= 1


def test_its_layouts_have_the_same_numbers(taesd, place):
    usual = values(open_model("tiny", vae=place / "folder"), "encoder", "decoder")
    assert len(usual) == len(taesd.state_dict())
    for name in ("pair", "prefixed.safetensors", "folder/diffusion_pytorch_model.safetensors"):
        assert same(values(open_model("tiny", vae=str(place / name)), "encoder", "decoder"), usual), name


@pytest.mark.parametrize(("half", "other"), [("decoder", "encoder"), ("encoder", "decoder")])
def test_a_half_of_it_leaves_the_other_half_as_it_is(taesd, place, half, other):
    model = open_model("tiny", vae=place / "pair" / f"taesd_{half}.safetensors")
    whole = open_model("tiny", vae=place / "folder")
    assert same(values(model, half), values(whole, half))
    assert same(values(model, other), values(open_model("tiny"), other))
    assert model.origin["vae"].endswith(f"taesd_{half}.safetensors")
    for kind in ("diffusers", "single_file", "keras_cv"):
        with pytest.raises(ModelError, match="no place for a decoder and an encoder of different kinds"):
            convert("tiny", place / "there", format=kind, vae=place / "pair" / f"taesd_{half}.safetensors")
    back = open_model(
        convert("tiny", place / f"half {half}", vae=place / "pair" / f"taesd_{half}.safetensors", dtype="float32")
    )
    assert back.config == model.config
    assert same(values(back, half, other), values(model, half, other))
    with pytest.raises(ModelError, match="has two autoencoders, each with one half"):
        open_model("tiny", vae=place / f"half {half}")


def test_a_large_one_comes_in_every_layout(large, place, models, warned):
    folder = models.folder("v1")
    first = open_model(folder, vae=place / "large")
    assert first.config.vae.scaling_factor == SD_V1_VAE.scaling_factor
    expected = values(first, "encoder", "decoder")
    # As a folder, as a file alone with and without its settings, inside of a model's folder and of a model's file.
    alone = shutil.copy(place / "large" / "diffusion_pytorch_model.safetensors", place / "alone.safetensors")
    inside = shutil.copytree(folder, place / "inside")
    shutil.copytree(place / "large", inside / "vae", dirs_exist_ok=True)
    ours = convert(folder, place / "ours", vae=place / "large", dtype="float32")
    original = convert(folder, place / "original.safetensors", vae=place / "large", dtype="float32")
    prefix = "first_stage_model."
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in safetensors.torch.load_file(original).items()
        if name.startswith(prefix)
    }
    bare = place / "vae-ft-mse-840000-ema-pruned.safetensors"
    safetensors.torch.save_file({**tensors, "model_ema.decay": torch.ones(1)}, bare)
    beside = place / "large" / "diffusion_pytorch_model.safetensors"
    for path in (alone, beside, inside, ours, original, bare):
        model = open_model(folder, vae=path)
        assert model.config.vae == first.config.vae, path
        assert same(values(model, "encoder", "decoder"), expected), path
    assert warned() == []
    generator = kerasdiff.Generator(folder, vae=bare, precision="float32", jit_compile=False)
    encoding, decoding = both_ways(generator, large, SD_V1_VAE.scaling_factor)
    assert encoding < 1e-4
    assert decoding <= 1


def test_the_scaling_factor_is_its_own_or_else_the_models(large, place, models, tmp_path):
    folder = shutil.copytree(place / "large", tmp_path / "vae")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "scaling_factor": 0.5}))
    assert open_model(models.folder("v1"), vae=folder).config.vae.scaling_factor == 0.5
    # The embedded model has 1, which a file without settings then has.
    (folder / "config.json").unlink()
    assert open_model("tiny", vae=folder).config.vae.scaling_factor == 1.0


def test_what_does_not_suit_the_model_is_one_line(taesd, large, place, models, tmp_path, warned, monkeypatch):
    def refused(vae, text, **arguments):
        with pytest.raises(ModelError) as error:
            open_model("tiny", vae=vae, **arguments)
        assert text in str(error.value)
        assert "\n" not in str(error.value)

    of_16 = {**sequential(taesd.state_dict(), "decoder"), "1.weight": torch.zeros(16, 16, 3, 3)}
    safetensors.torch.save_file(of_16, tmp_path / "taesd3_decoder.safetensors")
    refused(tmp_path / "taesd3_decoder.safetensors", "has latents of 16 channels, as of Stable Diffusion 3 and Flux")
    flux = {"decoder.conv_in.weight": torch.zeros(8, 16, 3, 3), "encoder.down.0.block.0.conv1.weight": torch.zeros(1)}
    safetensors.torch.save_file(flux, tmp_path / "ae.safetensors")
    refused(tmp_path / "ae.safetensors", "has latents of 16 channels")
    settings = {"_class_name": "AutoencoderKL", "latent_channels": 16, "use_quant_conv": False}
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps(settings))
    refused(tmp_path, "has latents of 16 channels, as of Stable Diffusion 3 and Flux; tiny has 4")
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    refused(tmp_path, "VQModel (an autoencoder (VAE)) is not supported; known: AutoencoderKL, AutoencoderTiny")
    refused("nothing here", "there is no autoencoder 'nothing here': give vae='taesd', a folder")
    refused(3, "vae must be a name or a path, not int")
    refused("", "vae must be a name or a path, not str")
    refused(models.folder("v1") / "unet" / "diffusion_pytorch_model.safetensors", "is a U-Net, and no autoencoder")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "is no autoencoder")
    refused(models.folder("v1") / "unet", "not supported; known: AutoencoderKL")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "has no autoencoder: it has neither config.json nor vae/config.json nor a file")
    refused(place, "has several files: give one of them as vae")
    part = {name: one for name, one in sequential(taesd.state_dict(), "encoder").items() if name.startswith("1.")}
    safetensors.torch.save_file(part, tmp_path / "part.safetensors")
    refused(tmp_path / "part.safetensors", "only a part of a small autoencoder's decoder")
    safetensors.torch.save_file(
        {name: one for name, one in large.state_dict().items() if name.startswith("decoder.")},
        tmp_path / "h.safetensors",
    )
    refused(tmp_path / "h.safetensors", "has only a part of an autoencoder")
    levels = {f"{half}_block_out_channels": (8,) * 3 for half in ("encoder", "decoder")}
    levels |= {f"num_{half}_blocks": (1,) * 3 for half in ("encoder", "decoder")}
    diffusers.AutoencoderTiny(**levels).save_pretrained(tmp_path / "coarse")
    refused(tmp_path / "coarse", "makes 4 pixels of a latent's side, and tiny needs 8")
    monkeypatch.setattr(keras_cv_live, "is_live", lambda model: True)
    refused(place / "folder", "vae does not go with a live KerasCV model")
    assert warned() == []


def test_those_of_stable_diffusion_xl_are_taken_with_a_warning(taesd, large, place, models, tmp_path, warned):
    folder = shutil.copytree(place / "large", tmp_path / "vae")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "scaling_factor": 0.13025}))
    for path in (folder, shutil.copytree(place / "folder", tmp_path / "taesdxl")):
        open_model(models.folder("v1"), vae=path)
        (line,) = warned()
        assert "seems to be that of Stable Diffusion XL, whose latents mean other colours than those of model" in line


def test_the_settings_of_a_small_one_are_read_strictly(taesd, place, tmp_path):
    folder = shutil.copytree(place / "folder", tmp_path / "vae")
    settings = json.loads((folder / "config.json").read_text())
    for change, text in (
        ({"upsampling_scaling_factor": 4}, "upsampling_scaling_factor=4 is not supported; only 2 is"),
        ({"encoder_block_out_channels": [8, 16, 8, 8]}, "the same at all 4 levels of num_encoder_blocks is"),
        ({"num_decoder_blocks": [1, "2", 1, 1]}, "must hold whole numbers"),
        ({"act_fn": "tanh"}, "unknown activation 'tanh'; known: relu, silu, gelu, mish"),
        ({"num_encoder_blocks": [1, 1], "encoder_block_out_channels": [8, 8]}, "an encoder of 2 levels"),
    ):
        (folder / "config.json").write_text(json.dumps({**settings, **change}))
        with pytest.raises(ModelError, match=r"config\.json") as error:
            open_model("tiny", vae=folder)
        assert text in str(error.value)
    (folder / "config.json").write_text(json.dumps({**settings, "act_fn": "swish"}))
    for path in (folder, folder / "diffusion_pytorch_model.safetensors"):
        assert open_model("tiny", vae=path).config.vae.activation == "silu"


def test_a_saved_image_names_it_and_is_made_again_with_it(taesd, place, tmp_path, openvino):
    vae = shutil.copytree(place / "folder", tmp_path / "small")
    generator = kerasdiff.Generator("tiny", vae=vae, **RUNS)
    result = generator.generate(PROMPT, **QUICK)
    own = openvino.generate(PROMPT, **QUICK)
    assert np.array_equal(result.latents, own.latents)
    assert not np.array_equal(result.images, own.images)
    # The U-Net and the text encoder are in memory once.
    unets = (each._pipeline.networks.network("unet").values for each in (openvino, generator))
    assert next(unets) is next(unets)
    result.save(tmp_path / "small.png")
    text = Image.open(tmp_path / "small.png").text["parameters"]
    digest = info.vae_info(str(vae), "tiny")["sha256"]
    assert f"VAE hash: {digest[:10]}, VAE: small, " in text
    receipt, before = result.receipt(0), own.receipt(0)
    assert (receipt.vae, receipt.vae_hash) == (str(vae), digest)
    assert receipt.model_hash != before.model_hash
    assert not {"vae", "vae_hash"} & {*json.loads(before.to_json())}
    assert np.array_equal(kerasdiff.replay(tmp_path / "small.png", progress=False).images, result.images)
    # Another one in its place is said, and so is a file that has changed.
    assert generator.is_current()
    os.utime(vae / "diffusion_pytorch_model.safetensors", ns=(1, 1))
    assert not generator.is_current()
    generator.release()
    with pytest.raises(ModelError, match="has changed since tiny was opened"):
        generator.decode(result.latents)
    shutil.rmtree(vae)
    with pytest.raises(ModelError, match="there is no autoencoder"):
        kerasdiff.replay(tmp_path / "small.png", progress=False)
    with pytest.warns(UserWarning, match="model hash"), pytest.warns(UserWarning, match="VAE"):
        again = kerasdiff.replay(
            tmp_path / "small.png", vae=place / "pair" / "taesd_decoder.safetensors", progress=False
        )
    assert np.array_equal(again.images, result.images)


def test_what_another_program_drew_is_made_again_with_what_is_given(small, place, tmp_path):
    text = PngInfo()
    settings = "Steps: 2, Sampler: Euler, Seed: 3, VAE hash: 1234567890, VAE: other.pt, ENSD: 5"
    text.add_text("parameters", f"{PROMPT}\n{settings}")
    Image.new("RGB", (128, 128)).save(tmp_path / "other.png", pnginfo=text)
    for vae, named in ((None, True), (place / "folder", False)):
        with pytest.warns(UserWarning, match="ENSD 5") as said:
            again = kerasdiff.replay(tmp_path / "other.png", model="tiny", vae=vae, progress=False)
        assert ("VAE other.pt" in str(said[-1].message)) == named
    assert again.receipt(0).vae == str(place / "folder")


def test_the_command_line_takes_it(small, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["kerasdiff", PROMPT, f"--vae={place / 'folder'}", "--num_steps=2", "--seed=3", "--backend=openvino"]
    assert GENERATE.call(generate_command.generate, [*command, "--noprogress"]) == 0
    with Image.open("out.png") as saved:
        assert np.array_equal(np.asarray(saved), small.generate(PROMPT, **QUICK)[0])
    again = ["kerasdiff", "--replay=out.png", "--output=again.png", f"--vae={place / 'nothing'}", "--noprogress"]
    assert GENERATE.call(generate_command.generate, again) == 2
    assert CONVERT.call(convert_main, ["kerasdiff.convert", "tiny", "out", f"--vae={place / 'folder'}"]) == 0
    assert isinstance(open_model("out").config.vae, TinyVAEConfig)


def test_workers_of_a_cluster_take_it(place, monkeypatch):
    taken = []
    monkeypatch.setattr(map_batches, "Actor", lambda settings, _: taken.append(settings.job.model))
    map_batches.Generate(vae="taesd")
    monkeypatch.setattr(driver, "open_model", lambda **source: raising(KeyError(source["vae"])))
    monkeypatch.chdir(place)
    with pytest.raises(KeyError, match=str(place / "folder")):
        driver.run([Row("one", PROMPT)], "out", vae="folder")
    assert taken[0]["vae"] == "taesd"


def test_jobs_know_theirs(small, place, tmp_path, openvino):
    run_job([Row("one", PROMPT)], tmp_path / "out", generator=small, progress=False, num_steps=2)
    job = json.loads((tmp_path / "out" / "job.json").read_text())
    assert job["model"]["vae"] == str(place / "folder")
    with pytest.raises(RequestError, match="another job"):
        run_job([Row("one", PROMPT)], tmp_path / "out", generator=openvino, progress=False, num_steps=2)


def test_the_last_generator_is_used_again_for_the_same_one_alone(taesd, place, monkeypatch):
    made = []

    def generator(checkpoint, preview_vae, **_):
        made.append((checkpoint.config.vae, preview_vae))
        return types.SimpleNamespace(config=checkpoint.config, is_current=lambda: True, run=lambda *_, **__: None)

    monkeypatch.setattr(api, "Generator", generator)
    monkeypatch.setattr(api, "_last", {})
    for arguments in ({}, {}, {"vae": place / "folder"}, {"preview_vae": "taesd"}, {"preview_vae": "taesd"}):
        kerasdiff.generate(PROMPT, **arguments, **QUICK)
    assert [type(vae) for vae, _ in made] == [VAEConfig, TinyVAEConfig, VAEConfig]
    assert [shown for _, shown in made] == [None, None, "taesd"]


def test_another_autoencoder_leaves_cached_weights_of_the_unet_alone(taesd, place, models, monkeypatch, openvino):
    asked = []
    monkeypatch.setattr(weight_cache, "path_for", lambda *key: asked.append(repr(key)))
    for vae in (None, place / "folder"):
        model = open_model(models.folder("v1"), vae=vae)
        for network in ("unet", "decoder"):
            model._source(network, openvino.execution, lambda network=network, model=model: model.shapes(network))
    unet, decoder, other_unet, other_decoder = asked
    assert unet == other_unet
    assert decoder != other_decoder


def test_previews_are_what_it_decodes_and_change_no_image(taesd, small, place, openvino):
    shown = kerasdiff.Generator("tiny", preview_vae=place / "folder", **RUNS)
    seen = []
    arguments = {**QUICK, "batch_size": 2}
    result = shown.generate(PROMPT, callback=lambda *step: seen.append(step), **arguments)
    # Two generators may share their threads out otherwise, which shows in last digits.
    assert np.abs(result.images.astype(int) - openvino.generate(PROMPT, **arguments).images).max() <= 1
    assert [(step, count, picture.shape) for step, count, picture in seen] == [
        (1, 2, (2, 128, 128, 3)),
        (2, 2, (2, 128, 128, 3)),
    ]
    assert seen[-1][2].dtype == np.uint8
    assert np.abs(seen[-1][2].astype(int) - small.decode(result.latents)).max() <= 1
    assert shown.origin.vae is None
    assert shown.release()
    # What fails is no picture, and the run goes on.
    previewer = shown._pipeline.previewer
    for error in (NonFiniteError("not finite"), MemoryError()):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(previewer, "_decoder", lambda *_, error=error: raising(error))
            assert previewer(result.latents) is None
    with pytest.raises(ModelError, match=r"preview_vae=.* has no decoder, which previews need"):
        kerasdiff.Generator("tiny", preview_vae=place / "pair" / "taesd_encoder.safetensors")
    # The rough ones are those of the latents, whatever decodes them.
    rough = []
    small.generate(PROMPT, callback=lambda *step: rough.append(step[2]), **QUICK)
    assert rough[-1].shape == (1, 16, 16, 3)


def raising(error):
    raise error


def test_a_model_with_a_small_one_is_written_and_read_bit_by_bit(taesd, place, tmp_path):
    model = open_model("tiny", vae=place / "folder")
    for kind in ("diffusers", "kerasdiff"):
        path = convert("tiny", tmp_path / kind, format=kind, vae=place / "folder", dtype="float32")
        back = open_model(path)
        assert back.config.vae == model.config.vae
        assert same(values(back, "encoder", "decoder"), values(model, "encoder", "decoder"))
    theirs = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "diffusers" / "vae").state_dict()
    assert all(torch.equal(theirs[name], one) for name, one in taesd.state_dict().items())
    assert json.loads((tmp_path / "diffusers" / "model_index.json").read_text())["vae"][1] == "AutoencoderTiny"
    for kind in ("single_file", "keras_cv"):
        with pytest.raises(ModelError, match="no place for a small autoencoder"):
            convert("tiny", tmp_path / "there", format=kind, vae=place / "folder")


def test_whole_pictures_are_diffusers_with_the_same_autoencoder(taesd, large, place, models, tmp_path, monkeypatch):
    """From text and from a picture, to which diffusers adds no noise of a small encoder's own."""
    pipe = checkpoints.pipeline("v1", tmp_path / "vocabulary")
    monkeypatch.setitem(vars(pipe.text_encoder), "text_model", pipe.text_encoder)
    arguments = {"prompt": "a red circle", "guidance_scale": 4.0}
    for name, vae in (("folder", taesd), ("large", large)):
        pipe.vae = vae
        generator = kerasdiff.Generator(models.folder("v1"), vae=place / name, precision="float32", jit_compile=False)
        pictures = [None] if vae is large else [None, np.random.default_rng(0).integers(0, 256, (64, 64, 3), "uint8")]
        for picture in pictures:
            theirs, more, ours = pipe, {}, {}
            if picture is not None:
                usual = {"clip_sample": False, "set_alpha_to_one": False}
                scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, **usual)
                parts = {**pipe.components, "scheduler": scheduler}
                theirs = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
                scaled = torch.from_numpy(picture.astype("float32") / 255).permute(2, 0, 1)[None]
                more, ours = ({"image": each, "strength": 0.6} for each in (scaled, picture))
                ours["sampler"] = "ddim"
            theirs.set_progress_bar_config(disable=True)
            seeded = torch.Generator().manual_seed(3)
            expected = theirs(**arguments, **more, num_inference_steps=5, generator=seeded, output_type="np").images
            got = generator.generate(**arguments, **ours, num_steps=5, rng="torch", seed=3, progress=False).images
            assert np.abs(got.astype(int) - np.round(expected * 255).astype(int)).max() <= 1


def test_what_decoding_takes_is_known(openvino):
    assert 0.1 < decoder_bytes(TinyVAEConfig(), 64, 64, 4) / decoder_bytes(SD_V1_VAE, 64, 64, 4) < 0.5
    # A decoder that stands in alone leaves what the encoder takes as it was.
    costs = MemoryModel(dataclasses.replace(SD_V1, vae=TinyVAEConfig(), other_encoder=SD_V1_VAE), openvino.execution)
    one = MicroBatch(1, 1)
    assert costs.encode(512, 512).need(one) == MemoryModel(SD_V1, openvino.execution).encode(512, 512).need(one)
    assert costs.decode(64, 64).need(one) < costs.encode(512, 512).need(one)


def test_tiles_differ_from_the_whole_at_their_edges_alone(small):
    """Without norms and attention, nothing is seen from afar."""
    latents = np.random.default_rng(0).standard_normal((48, 48, 4)).astype("float32")
    decode = small._pipeline.decoder
    whole, tiles = decode(latents).astype(int), decode(latents, 2).astype(int)
    assert whole.shape == tiles.shape == (384, 384, 3)
    # Tiles of 28 latents overlap by 8 in the middle, and what lies 10 away from their edges is the same.
    assert np.abs(whole - tiles)[:80, :80].max() <= 1
    assert np.abs(whole - tiles).mean() < 1


def test_the_hub(taesd, place, tmp_path):
    """A repository of its own, a whole model's, and a file."""
    repository = shutil.copytree(place / "folder", tmp_path / "repository")
    shutil.copy(place / "pair" / "taesd_decoder.safetensors", repository)
    (repository / "README.md").write_text("a small one")
    with serve(repository) as (endpoint, asked):

        def opened(vae, **environment):
            return line_of(start_opening(tmp_path, endpoint, "tiny", arguments={"vae": vae}, **environment))

        assert opened("org/name") == "tiny (64, 128) False"
        names = {line.split("/", 4)[4] for line in asked if line.startswith("GET org/name/resolve")}
        assert names == {"config.json", "diffusion_pytorch_model.safetensors"}
        assert opened("org/name/taesd_decoder.safetensors") == "tiny (64, 128) False"
        assert "there is no org/none at" in opened("org/none")
        # The only file is meant where there are no settings.
        (repository / "config.json").unlink()
        (repository / "diffusion_pytorch_model.safetensors").unlink()
        assert opened("org/bare") == "tiny (64, 128) False"
    assert opened("org/name", HF_HUB_OFFLINE="1") == "tiny (64, 128) False"


def test_taesd_is_that_of_the_model(taesd, place, models, monkeypatch):
    asked = []
    monkeypatch.setattr(vae_files, "TINY_TAESD_FOLDER", place / "folder")
    monkeypatch.setattr(vae_files.hub, "fetch_autoencoder", lambda *name: asked.append(name) or place / "folder")
    assert open_model("tiny", vae="taesd").config.vae.decoder_width == 16
    assert asked == []
    model = open_model(models.folder("v1"), vae="taesd")
    assert asked == [("madebyollin/taesd", None, True)]
    monkeypatch.setattr(vae_files.hub, "downloaded", lambda *name: place / "folder")
    assert is_current(model)
    # The architecture alone is known.
    assert open_model("sd-v1-4", "random", vae="taesd").config.vae == TinyVAEConfig()
    assert len(asked) == 1


def test_info_says_what_one_is(taesd, large, place, capsys):
    assert info.PROGRAM.call(info.main, ["kerasdiff.info", f"--vae={place / 'folder'}"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"file     {place / 'folder' / 'diffusion_pytorch_model.safetensors'}"
    assert told[2].startswith("kind     AutoencoderTiny (TAESD), decoder and encoder, widths 16, 0.3 MB")
    assert told[3] == "latents  4 channels, one for 8 x 8 pixels, scaling factor 1"
    assert info.PROGRAM.call(info.main, ["kerasdiff.info", f"--vae={place / 'large'}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["widths"]) == ("AutoencoderKL", [32, 64, 64, 64])
    assert found["scaling factor"] == 0.18215
