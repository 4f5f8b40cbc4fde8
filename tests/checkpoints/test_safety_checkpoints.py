"""The safety checker in folders of diffusers and of ours: read, written, left out, and broken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings

import checkpoints
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import diffusers, torch
from fake_hub import line_of, serve, start_opening

from kerasdiff.checkpoints import weight_cache
from kerasdiff.checkpoints.export import write_diffusers, write_native
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.convert import convert
from kerasdiff.diffusion.network import Network
from kerasdiff.diffusion.safety_stage import SafetyStage
from kerasdiff.errors import ModelError
from kerasdiff.models.network_configs import SafetyCheckerConfig
from kerasdiff.runtime.precision import Execution
from kerasdiff.runtime.program_cache import ProgramCache

FLOAT32 = Execution("CPU", "float32", False)
CONFIG = SafetyCheckerConfig(
    image_size=18, patch_size=4, width=16, num_layers=2, num_heads=2, mlp_width=40, projection=12, resize=18
)
SIZE = {"image_size": 18, "patch_size": 4}
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 30, 24, 3), "uint8")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """diffusers' pipeline with a safety checker, and its folder."""
    folder = tmp_path_factory.mktemp("safety")
    pipe = checkpoints.with_safety_checker(checkpoints.pipeline("v1", folder / "vocabulary"))
    return pipe, checkpoints.save(pipe, folder / "model")


@pytest.fixture
def copy(made, tmp_path):
    """A folder that tests may damage."""
    return shutil.copytree(made[1], tmp_path / "copy")


def parameters(model):
    return {name: np.array(value) for name, value in model.parameters("safety_checker")}


def flags_of(model, execution=FLOAT32, programs=None):
    programs = ProgramCache(None) if programs is None else programs
    network = Network("safety_checker", model, execution, programs)
    check = SafetyStage(network, execution.jit_compile, programs, model.config.safety_checker)
    return check(IMAGES).tolist(), check


def flags_of_diffusers(pipe):
    pixels = pipe.feature_extractor(list(IMAGES), return_tensors="pt", input_data_format="channels_last").pixel_values
    return pipe.safety_checker(pixels, np.ones((len(IMAGES), 1)))[1]


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_folder_s_checker_flags_what_diffusers_does(made):
    pipe, folder = made
    model = open_model(folder)
    assert model.config.safety_checker == CONFIG
    flags, _ = flags_of(model)
    assert flags == flags_of_diffusers(pipe)
    assert 2 < sum(flags) < 10


def test_older_files_have_other_names(made, copy):
    path = copy / "safety_checker" / "model.safetensors"
    tensors = {
        f"vision_model.{name}" if name.startswith("vision_model.") else name: value
        for name, value in safetensors.numpy.load_file(path).items()
    }
    tensors["vision_model.vision_model.embeddings.position_ids"] = np.arange(17)[None]
    safetensors.numpy.save_file(tensors, path)
    settings = copy / "safety_checker" / "config.json"
    vision = json.loads(settings.read_text())["vision_config"]
    # The defaults beside it do not count.
    change(settings, vision_config={"hidden_size": 768, "image_size": 224}, vision_config_dict=vision)
    expected = parameters(open_model(made[1]))
    for layout in ("nested", "flat"):
        if layout == "flat":
            settings.write_text(json.dumps({**vision, "projection_dim": 12}))
        model = open_model(copy)
        assert model.config.safety_checker == CONFIG
        found = parameters(model)
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_what_a_file_leaves_out_is_transformers_default(copy):
    (copy / "safety_checker" / "config.json").write_text('{"vision_config": {}}')
    (copy / "feature_extractor" / "preprocessor_config.json").write_text("{}")
    expected = SafetyCheckerConfig(
        patch_size=32, width=768, num_layers=12, num_heads=12, mlp_width=3072, projection=512
    )
    assert open_model(copy).config.safety_checker == expected


@pytest.mark.parametrize(
    ("settings", "resize"),
    [
        ({"size": 20, "crop_size": 18}, 20),
        ({"size": {"shortest_edge": 20}, "crop_size": {"height": 18, "width": 18}}, 20),
        ({"size": {"height": 20, "width": 22}}, (20, 22)),
    ],
)
def test_sizes_are_written_in_several_ways(copy, settings, resize):
    change(copy / "feature_extractor" / "preprocessor_config.json", **settings)
    assert open_model(copy).config.safety_checker.resize == resize


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("feature_extractor/preprocessor_config.json", {"size": {"longest_edge": 9}}, "a number, shortest_edge, or"),
        ("feature_extractor/preprocessor_config.json", {"size": {"shortest_edge": "9"}}, "is not supported; a number"),
        ("feature_extractor/preprocessor_config.json", {"size": [9]}, r"size=[9] is not of the expected kind"),
        ("feature_extractor/preprocessor_config.json", {"crop_size": 20}, "crop_size=20 is not supported; the safety"),
        ("feature_extractor/preprocessor_config.json", {"resample": 2}, "resample=2 is not supported; only 3 is"),
        ("feature_extractor/preprocessor_config.json", {"do_resize": False}, "do_resize=False is not supported"),
        ("feature_extractor/preprocessor_config.json", {"do_normalize": False}, "do_normalize=False is not supported"),
        ("feature_extractor/preprocessor_config.json", {"rescale_factor": 1.0}, "rescale_factor=1.0 is not supported"),
        ("feature_extractor/preprocessor_config.json", {"image_mean": [1, "2", 3]}, "must be three numbers"),
        ("feature_extractor/preprocessor_config.json", {"image_std": [1, 2]}, "must be three positive numbers"),
        ("safety_checker/config.json", {"vision_config": {"num_channels": 4}}, "num_channels=4 is not supported"),
        ("safety_checker/config.json", {"vision_config": {"layer_norm_eps": 1e-6}}, "layer_norm_eps=1e-06 is not supp"),
        ("safety_checker/config.json", {"vision_config": {"hidden_size": "wide", **SIZE}}, "hidden_size='wide' is not"),
        ("safety_checker/config.json", {"vision_config": {"hidden_act": "relu", **SIZE}}, "unknown activation 'relu'"),
        ("model_index.json", {"safety_checker": ["mine", "Other"]}, "only StableDiffusionSafetyChecker is"),
    ],
)
def test_what_is_not_supported_is_named(copy, file, settings, message):
    change(copy / file, **settings)
    with pytest.raises(ModelError) as caught:
        open_model(copy)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["safety_checker/config.json", "feature_extractor/preprocessor_config.json"])
def test_a_missing_settings_file_is_named(copy, file):
    (copy / file).unlink()
    with pytest.raises(ModelError, match=f"{file} cannot be read: No such file"):
        open_model(copy)


def test_a_model_may_have_none(copy):
    index = copy / "model_index.json"
    for entry in (None, [None, None]):
        change(index, safety_checker=entry)
        assert open_model(copy).config.safety_checker is None
    values = json.loads(index.read_text())
    del values["safety_checker"]
    index.write_text(json.dumps(values))
    model = open_model(copy)
    assert model.config.safety_checker is None
    with pytest.raises(ModelError, match="this model has no safety checker"):
        model.shapes("safety_checker")
    index.unlink()  # the folder alone says that there is one
    assert open_model(copy).config.safety_checker == CONFIG
    shutil.rmtree(copy / "safety_checker")
    assert open_model(copy).config.safety_checker is None


def test_random_weights_have_none(made):
    assert open_model(made[1], "random").config.safety_checker is None


def test_a_pickle_is_refused(copy):
    path = copy / "safety_checker" / "model.safetensors"
    path.unlink()
    torch.save({"x": torch.nn.Linear(1, 1)}, path.with_name("pytorch_model.bin"))
    model = open_model(copy)
    with pytest.raises(ModelError, match="is a pickle checkpoint, which can run code"):
        model.build("safety_checker", FLOAT32)


def test_what_does_not_fit_is_named(copy):
    path = copy / "safety_checker" / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    del tensors["concept_embeds_weights"], tensors["vision_model.embeddings.class_embedding"]
    tensors["special_care_embeds"] = np.zeros((4, 12), "float32")
    tensors["vision_model.pre_layernorm.weight"] = np.zeros(16, "float32")
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(ModelError) as caught:
        open_model(copy).build("safety_checker", FLOAT32)
    for part in (
        f"{path} does not fit the model",
        "concept_embeds_weights is missing",
        "vision_model.vision_model.embeddings.class_embedding is missing",
        "special_care_embeds has shape [4, 12], which does not make [3, 12]",
        "vision_model.pre_layernorm.weight is not part of this model",
    ):
        assert part in str(caught.value)


def test_diffusers_reads_what_is_written(made, tmp_path):
    pipe, folder = made
    write_diffusers(open_model(folder), tmp_path / "written")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "written", local_files_only=True)
    assert again.config.requires_safety_checker
    state = again.safety_checker.state_dict()
    for name, value in pipe.safety_checker.state_dict().items():
        assert torch.equal(state[name], value), name
    assert flags_of_diffusers(again) == flags_of_diffusers(pipe)
    ours = open_model(tmp_path / "written")
    assert ours.config.safety_checker == CONFIG
    assert flags_of(ours)[0] == flags_of_diffusers(pipe)


def test_our_folders_keep_it(made, tmp_path):
    model = open_model(made[1])
    write_native(model, tmp_path, "float32")
    again = open_model(tmp_path)
    assert again.config == model.config
    expected, found = parameters(model), parameters(again)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert flags_of(again)[0] == flags_of(model)[0]
    (tmp_path / "safety_checker.safetensors").unlink()
    with pytest.raises(ModelError, match=r"safety_checker\.safetensors has changed since .* was opened"):
        again.build("safety_checker", FLOAT32)
    again = open_model(tmp_path)
    with pytest.raises(ModelError, match=r"safety_checker\.safetensors cannot be read: No such file"):
        again.build("safety_checker", FLOAT32)


def test_a_broken_entry_of_ours_is_named(made, tmp_path):
    write_native(open_model(made[1]), tmp_path, "float32")
    for entry in ([], {"image_size": "large"}, {"speed": 3}):
        change(tmp_path / "config.json", safety_checker=entry)
        with pytest.raises(ModelError, match=r"config\.json cannot be read as a model configuration"):
            open_model(tmp_path)


def test_other_formats_drop_it_and_say_so(made, tmp_path, caplog):
    convert(made[1], tmp_path / "keras_cv", format="keras_cv")
    assert caplog.messages.pop(0) == "the safety checker of model is left out: format='keras_cv' has none"
    convert(made[1], tmp_path / "ours")
    assert "safety checker" not in caplog.text.partition("\n")[2]
    command = [sys.executable, "-W", "ignore", "-m", "kerasdiff.convert", str(made[1])]
    path = tmp_path / "single.safetensors"
    run = subprocess.run(
        [*command, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    said = [line for line in run.stderr.splitlines() if "safety checker" in line]
    assert len(said) == 1
    assert said[0].endswith("the safety checker of model is left out: format='single_file' has none")
    assert run.stdout == f"{path}\n"
    assert open_model(path).config.safety_checker is None


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "mixed_bfloat16"])
def test_a_kept_program_has_its_thresholds_in_float32(made, tmp_path, precision):
    """The second time nothing but parameters is loaded, and no layer says what type they have."""
    execution, programs, model = Execution("CPU", precision, False), ProgramCache(tmp_path), open_model(made[1])
    first, check = flags_of(model, execution, programs)
    assert check.compiled[0].traces == 1
    again, check = flags_of(model, execution, programs)
    assert check.compiled[0].traces == 0
    assert again == first
    expected = parameters(model)
    shapes = model.shapes("safety_checker")
    values = model.load("safety_checker", execution, shapes)
    for name in ("concept_embeds", "concept_embeds_weights", "special_care_embeds", "special_care_embeds_weights"):
        assert np.array_equal(values[f"safety_checker.{name}"], expected[f"safety_checker.{name}"])
    assert values["safety_checker.class_embedding"].dtype == execution.variable_dtype


def test_the_kept_file_is_not_rounded(made, tmp_path, monkeypatch):
    monkeypatch.setenv("KERASDIFF_CACHE", str(tmp_path))
    monkeypatch.setattr(weight_cache, "_LEAST_BYTES", 0)
    model = open_model(made[1])
    model.build("safety_checker", Execution("CPU", "bfloat16", False))
    (kept,) = (tmp_path / "weights").glob("safety_checker-*.safetensors")
    found = safetensors.numpy.load_file(kept)
    for name, value in parameters(model).items():
        assert np.array_equal(found[name.removeprefix("safety_checker.")], value), name


def test_the_hub_gives_the_checker_of_one_variant(copy, tmp_path):
    path = copy / "safety_checker" / "model.safetensors"
    shutil.copy(path, path.with_name("model.fp16.safetensors"))
    path.with_name("pytorch_model.bin").write_bytes(b"\x80\x04 a pickle that nobody asked for")
    with serve(copy) as (endpoint, asked):
        assert line_of(start_opening(tmp_path, endpoint, "org/name")).startswith("org/name (32, 64)")
    names = {line.split("/", 4)[4] for line in asked if line.startswith("GET org/name/resolve")}
    parts = ("safety_checker/", "feature_extractor/")
    assert {name for name in names if name.startswith(parts)} == {
        "safety_checker/config.json",
        "safety_checker/model.safetensors",
        "feature_extractor/preprocessor_config.json",
    }
