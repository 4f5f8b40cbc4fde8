"""The text encoders of a single file, which have the names of CLIP in transformers or those of OpenCLIP."""

from collections.abc import Callable, Iterator

from kerasdiff.checkpoints.formats.diffusers_folder import clip_path, renamed
from kerasdiff.checkpoints.formats.ldm_shapes import count, is_xl, shape_of
from kerasdiff.checkpoints.mapped_source import TensorSlice
from kerasdiff.models.config import ModelConfig
from kerasdiff.models.network_configs import TextEncoderConfig
from kerasdiff.runtime.safetensors_map import TensorFiles

# Where the text encoder of Stable Diffusion 1.x and 2.x begins, and those of Stable Diffusion XL.
PLACE, XL_PLACES = "cond_stage_model.", ("conditioner.embedders.0.", "conditioner.embedders.1.")
# What follows that, in either spelling, and where the projection of a pooled embedding is in each.
CLIP, OPEN_CLIP = "transformer.text_model.", "model."
_PROJECTIONS = ("model.text_projection", "transformer.text_projection.weight", "model.text_projection.weight")
HEAD_WIDTH = 64
WIDTH_V2, LAYERS_V2 = 1024, 23


def spellings(place: str) -> tuple[str, str]:
    """How the names of a text encoder's tensors begin, one or the other."""
    return place + CLIP, place + OPEN_CLIP


def places(tensors: TensorFiles) -> dict[str, str]:
    """Network -> where it begins in a file; the refiner has only the second one of the base model."""
    first, second = XL_PLACES
    if not is_xl(tensors) and not any(key.startswith(first) for key in tensors):
        return {"text_encoder": PLACE}
    if first + OPEN_CLIP + "ln_final.weight" in tensors:
        return {"text_encoder_2": first}
    return {"text_encoder": first, "text_encoder_2": second}


def place_of(network: str, config: ModelConfig) -> str:
    """Where a text encoder of a model begins."""
    return XL_PLACES[list(config.text_encoders).index(network)] if config.unet.embeds_sizes else PLACE


def is_v2(tensors: TensorFiles, text_width: int) -> bool:
    """Whether it is Stable Diffusion 2.x, whose text encoder may also have the names of 1.x."""
    return text_width == WIDTH_V2 or PLACE + OPEN_CLIP + "ln_final.weight" in tensors


def text_config(tensors: TensorFiles, network: str, place: str) -> TextEncoderConfig:
    """A text encoder that the tensors' names and shapes tell; heads are not in them: they are 64 wide."""
    clip, open_clip = spellings(place)
    spelt_open = open_clip + "ln_final.weight" in tensors
    if spelt_open:
        tokens, positions = open_clip + "token_embedding.weight", open_clip + "positional_embedding"
        layers, mlp = open_clip + "transformer.resblocks.", "mlp.c_fc"
    else:
        tokens, positions = (f"{clip}embeddings.{kind}_embedding.weight" for kind in ("token", "position"))
        layers, mlp = clip + "encoder.layers.", "mlp.fc1"
    vocab_size, width = shape_of(tensors, tokens)
    v2, xl = place == PLACE and is_v2(tensors, width), place != PLACE
    num_layers = count(tensors, layers)
    if v2:  # Stable Diffusion 2.x reads the penultimate layer, and some files leave out the last
        num_layers = min(num_layers, LAYERS_V2) if width == WIDTH_V2 else num_layers - spelt_open
    return TextEncoderConfig(
        vocab_size=vocab_size,
        width=width,
        num_layers=num_layers,
        num_heads=max(1, width // HEAD_WIDTH),
        max_length=shape_of(tensors, positions)[0],
        activation="gelu" if v2 or network == "text_encoder_2" else "quick_gelu",
        mlp_width=shape_of(tensors, f"{layers}0.{mlp}.weight")[0],
        skipped_layers=int(xl),
        final_norm=not xl,
        projection=_projection(tensors, place) if network == "text_encoder_2" else None,
    )


def _projection(tensors: TensorFiles, place: str) -> int:
    """The width of a pooled embedding."""
    found = next((one for one in _PROJECTIONS if place + one in tensors), _PROJECTIONS[0])
    return shape_of(tensors, place + found)[-1 if found == _PROJECTIONS[0] else 0]


_RESBLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "fc1": "mlp.c_fc",
    "fc2": "mlp.c_proj",
    "out_proj": "attn.out_proj",
}


def text_slices(network: str, config: ModelConfig) -> Callable[[str], Iterator[TensorSlice]]:
    """Our name of a parameter of a text encoder -> its slices, in the spelling first that such a one usually has."""
    place = place_of(network, config)
    clip, open_clip = spellings(place)
    step = 1 if config.text_encoders[network].activation == "quick_gelu" else -1

    def of(name: str) -> Iterator[TensorSlice]:
        path, leaf = renamed(name)
        if path == "text_projection":
            yield from (TensorSlice(place + one, turned=one == _PROJECTIONS[0]) for one in _PROJECTIONS)
        else:
            yield from (TensorSlice(f"{clip}{clip_path(path)}.{leaf}"), _in_open_clip(open_clip, path, leaf))[::step]

    return of


def _in_open_clip(open_clip: str, path: str, leaf: str) -> TensorSlice:
    ends = {
        "token_embedding": "token_embedding.weight",
        "position_embedding": "positional_embedding",
        "final_layer_norm": f"ln_final.{leaf}",
    }
    if path in ends:
        return TensorSlice(open_clip + ends[path])
    _, index, part = path.split(".")
    block = f"{open_clip}transformer.resblocks.{index}"
    if part in _RESBLOCK:
        return TensorSlice(f"{block}.{_RESBLOCK[part]}.{leaf}")
    # one matrix for queries, keys and values
    return TensorSlice(f"{block}.attn.in_proj_{leaf}", ("q_proj", "k_proj", "v_proj").index(part), 3)


def is_unread(key: str, network: str, config: ModelConfig) -> bool:
    """Whether a tensor may be left over by a text encoder, within its place."""
    clip, open_clip = spellings(place_of(network, config))
    unread = (
        f"{open_clip}transformer.resblocks.{config.text_encoders[network].num_layers}.",
        f"{clip}encoder.layers.{LAYERS_V2}.",
    )
    rest = ("embeddings.position_ids", "text_projection", "text_projection.weight", "logit_scale", "attn_mask")
    return key.endswith(rest) or key.startswith(unread)
