"""Where the image encoders of IP-Adapters are found, in folders and on the hub."""

import dataclasses
import json

import pytest

from kerasdiff.checkpoints import hub, image_encoders
from kerasdiff.errors import ModelError
from kerasdiff.models.control_configs import IPAdapterConfig

# Width of a layer and of an embedding.
H, BIG_G = (1280, 1024), (1664, 1280)
PLAIN, PLUS = IPAdapterConfig(), IPAdapterConfig(kind="plus", embedding_width=1280)
OF_BIG_G = IPAdapterConfig(embedding_width=1280)
# As h94/IP-Adapter has them.
FILES = ["models/ip-adapter_sd15.bin", "sdxl_models/ip-adapter_sdxl.bin"]
FILES += [
    f"{part}models/image_encoder/{name}" for part in ("", "sdxl_") for name in ("config.json", "model.safetensors")
]
FILES += ["models/image_encoder/pytorch_model.bin", "sdxl_models/image_encoder/pytorch_model.bin"]


def written(folder, sizes):
    """The settings of an image encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"hidden_size": sizes[0], "projection_dim": sizes[1], "num_attention_heads": 16, "patch_size": 14}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def published(tmp_path):
    written(tmp_path / "models" / "image_encoder", H)
    written(tmp_path / "sdxl_models" / "image_encoder", BIG_G)
    return tmp_path


@pytest.mark.parametrize(
    ("place", "config", "expected"),
    [
        ("models", PLAIN, "models"),
        ("models", PLUS, "models"),
        ("models", OF_BIG_G, "sdxl_models"),
        ("sdxl_models", OF_BIG_G, "sdxl_models"),
        ("sdxl_models", PLUS, "models"),  # as of ip-adapter-plus_sdxl_vit-h
    ],
)
def test_the_encoder_that_fits_is_found_beside_a_file(published, place, config, expected):
    file = published / place / "adapter.safetensors"
    found = image_encoders.find_image_encoder(file, config, str(file), None)
    assert found == published / expected / "image_encoder"


def test_an_encoder_that_lacks_is_named(published):
    file = published / "models" / "adapter.safetensors"
    own = dataclasses.replace(PLUS, embedding_width=1664)
    assert image_encoders.find_image_encoder(file, own, str(file), None).parent.name == "sdxl_models"
    given = str(published / "sdxl_models")
    with pytest.raises(ModelError, match=r"needs the image encoder CLIP ViT-H/14 \(models/image_en.*bigG/14; give"):
        image_encoders.find_image_encoder(file, PLAIN, str(file), given)
    with pytest.raises(ModelError, match=r"ViT-H/14 .* there is none at '/nowhere'; give its folder, with config.json"):
        image_encoders.find_image_encoder(file, PLUS, str(file), "/nowhere")
    away = published / "away" / "there" / "adapter.safetensors"
    with pytest.raises(ModelError, match=r"ViT-bigG/14 .* 1280 wide: give its folder as encoder, or put it beside"):
        image_encoders.find_image_encoder(away, OF_BIG_G, str(away), None)


@pytest.mark.parametrize(
    ("name", "given"), [(FILES[0], None), (FILES[1], None), (FILES[0], "org/all/models/image_encoder")]
)
def test_of_a_file_on_the_hub_only_its_own_encoder_is_downloaded(tmp_path, published, monkeypatch, name, given):
    loaded = []

    def fetch(asked, choose):
        meant, files = choose("org/all", FILES, asked.removeprefix("org/all/"))
        loaded.extend(files)
        return published / meant

    monkeypatch.setattr(hub, "fetch_chosen", fetch)
    image_encoders._from_hub.cache_clear()
    config = PLAIN if name == FILES[0] else OF_BIG_G
    found = image_encoders.find_image_encoder(published / name, config, f"org/all/{name}", given)
    image_encoders._from_hub.cache_clear()
    folder = name.partition("/")[0] + "/image_encoder"
    assert found == published / folder
    assert [file for file in loaded if "model." in file] == [f"{folder}/model.safetensors"]
