"""Trains the adapters of the embedded model: `python -m kerasdiff.training.lora_training --folder=runs`.

Three LoRAs and a textual inversion, each a few minutes on two cores. An interrupted run resumes from its last
checkpoint.
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from absl import app, flags, logging
from keras import ops
from safetensors.numpy import save_file

from kerasdiff.checkpoints.checkpoint import Checkpoint
from kerasdiff.checkpoints.formats.diffusers_folder import clip_path
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.models.config import TINY
from kerasdiff.models.tokenizer import Tokenizer, pad_ids
from kerasdiff.runtime.precision import Execution
from kerasdiff.training import autoencoder, concepts, run_flags, scenes
from kerasdiff.training.denoiser import NoisedBatches, velocity_loss
from kerasdiff.training.loop import train

BATCH_SIZE = 16
NUM_SCENES = 512
STEPS_PER_EPOCH = 50
EMA_MOMENTUM = 0.98
# Fraction of the schedule; at lower noise levels, what is drawn is settled.
LOWEST = 0.15
# Of the encoder's copy that learns to show the decoder a new colour.
ENCODER_STEPS, ENCODER_BATCH_SIZE, ENCODER_LEARNING_RATE = 200, 8, 2e-3


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one adapter is trained."""

    steps: int
    learning_rate: float
    # Of a LoRA, and what is found in the paths of the modules that it changes.
    rank: int = 0
    modules: str = ""
    # Alpha in the file to that of training: images show the new thing a little more surely than they were trained to.
    emphasis: float = 1.0
    # Whether the pictures are of a kind that the encoder gives wrong latents for, though the decoder could draw it.
    new_latents: bool = False
    # Of a textual inversion: how many vectors, and the word that they begin as.
    vectors: int = 0
    start: str = ""


RECIPES = {
    "blueprint": Recipe(500, 4e-3, rank=4, modules=r"unet/.*attn\d\.to_"),
    # Its latents are further from 0 than those that the last convolutions were made for.
    "cyan": Recipe(
        300,
        5e-3,
        rank=4,
        modules=r"unet/.*attn2\.to_|text_encoder/.*_proj|up_blocks\.1/resnets\.\d/conv|unet/conv_out",
        new_latents=True,
    ),
    "moon": Recipe(500, 4e-3, rank=4, modules=r"unet/.*attentions|text_encoder/.*_proj", emphasis=1.15),
    "<giant>": Recipe(200, 3e-2, vectors=2, start="large"),
}


class Pair(keras.layers.Layer):
    """A low-rank change of a kernel (..., in, out); it begins as none (Hu et al. 2021, arXiv:2106.09685)."""

    def __init__(self, shape: tuple[int, ...], rank: int, **kwargs) -> None:
        super().__init__(dtype="float32", **kwargs)
        spread = keras.initializers.RandomNormal(stddev=np.prod(shape[:-1]) ** -0.5)
        self.down = self.add_weight(shape=(*shape[:-1], rank), initializer=spread, name="down")
        self.up = self.add_weight(shape=(rank, shape[-1]), initializer="zeros", name="up")
        self.rank, self.built = rank, True

    @property
    def alpha(self) -> float:
        """Half the rank."""
        return self.rank / 2

    def change(self):
        """What is added to the kernel."""
        return self.alpha / self.rank * ops.matmul(self.down, self.up)

    def tensors(self, emphasis: float) -> Iterator[tuple[str, np.ndarray]]:
        """The pair as kohya's files have it, in torch's layout, and its alpha times `emphasis`."""
        down, up = (np.asarray(weight) for weight in (self.down, self.up))
        flat = self.down.ndim == 2
        yield "lora_down.weight", down.T if flat else down.transpose(3, 2, 0, 1)
        yield "lora_up.weight", up.T if flat else up.T[:, :, None, None]
        yield "alpha", np.array(emphasis * self.alpha)


class LoraTraining(keras.Model):
    """Frozen networks with pairs for their kernels, and the U-Net's training loss."""

    def __init__(self, unet: keras.layers.Layer, text_encoder: keras.layers.Layer, recipe: Recipe) -> None:
        super().__init__(dtype="float32")
        self.unet, self.text_encoder, self.emphasis = unet, text_encoder, recipe.emphasis
        self.unet.trainable = self.text_encoder.trainable = False
        weights = [*unet.weights, *text_encoder.weights]
        self.kernels = [weight for weight in weights if re.search(rf"({recipe.modules}).*/kernel", weight.path)]
        self.pairs = [Pair(kernel.shape, recipe.rank, name=f"pair{i}") for i, kernel in enumerate(self.kernels)]
        self.built = True

    def merged(self) -> keras.StatelessScope:
        """Inside, kernels are what the pairs make of them."""
        pairs = zip(self.kernels, self.pairs, strict=True)
        return keras.StatelessScope(state_mapping=[(kernel, kernel + pair.change()) for kernel, pair in pairs])

    def call(self, inputs):
        *noised, tokens = inputs
        with self.merged():
            predicted, loss = velocity_loss(self.unet, self.text_encoder(tokens), *noised)
        self.add_loss(loss)
        return predicted

    def tensors(self) -> dict[str, np.ndarray]:
        """What the file of the LoRA holds, in float16."""
        return {
            f"{_kohya_name(kernel.path)}.{suffix}": np.ascontiguousarray(value, "float16")
            for kernel, pair in zip(self.kernels, self.pairs, strict=True)
            for suffix, value in pair.tensors(self.emphasis)
        }


def _kohya_name(path: str) -> str:
    """kohya's name of the module of a kernel of ours, such as "unet/conv_in/kernel"."""
    network, *parts, _ = path.split("/")
    name = ".".join(parts)
    prefix, name = ("lora_te_text_model", clip_path(name)) if network == "text_encoder" else ("lora_unet", name)
    return f"{prefix}_{name}".replace(".", "_")


class EmbeddingTraining(keras.Model):
    """Frozen networks, and vectors in place of rows `ids` of the table (Gal et al. 2022, arXiv:2208.01618).

    The vectors begin as the row `start`; `trigger` is the word that they stand for.
    """

    def __init__(
        self,
        unet: keras.layers.Layer,
        text_encoder: keras.layers.Layer,
        trigger: str,
        ids: Sequence[int],
        start: int,
    ) -> None:
        super().__init__(dtype="float32")
        self.unet, self.text_encoder = unet, text_encoder
        self.trigger, self.ids = trigger, np.array(ids, "int32")[:, None]
        self.unet.trainable = self.text_encoder.trainable = False
        first = np.tile(np.asarray(text_encoder.token_embedding.embeddings)[start], (len(ids), 1))
        self.vectors = self.add_weight(shape=first.shape, initializer=lambda *_, **__: first, name="vectors")
        self.built = True

    def call(self, inputs):
        *noised, tokens = inputs
        table = self.text_encoder.token_embedding.embeddings
        changed = ops.scatter_update(table, self.ids, self.vectors)
        with keras.StatelessScope(state_mapping=[(table, changed)]):
            predicted, loss = velocity_loss(self.unet, self.text_encoder(tokens), *noised)
        self.add_loss(loss)
        return predicted

    def tensors(self) -> dict[str, np.ndarray]:
        """What the file of the embedding holds, as diffusers has it, in float16."""
        return {self.trigger: np.asarray(self.vectors, "float16")}


class EncoderTraining(keras.Model):
    """A copy of the encoder learns latents from which the decoder, as it is, draws what neither was trained on."""

    def __init__(self, encoder: keras.layers.Layer, decoder: keras.layers.Layer) -> None:
        super().__init__(dtype="float32")
        self.encoder, self.decoder = encoder, decoder
        self.encoder.trainable, self.decoder.trainable = True, False
        self.built = True

    def call(self, inputs):
        (pictures,) = inputs
        rebuilt = self.decoder(self.encoder(pictures))
        self.add_loss(autoencoder.reconstruction_loss(rebuilt, pictures))
        return rebuilt


def latents_of(
    model: Checkpoint, pictures: np.ndarray, folder: pathlib.Path, *, seed: int, encoder_steps: int
) -> np.ndarray:
    """Latents of pictures uint8 (N, 128, 128, 3), by a copy of the encoder that learns them for so many steps."""
    training = EncoderTraining(build(model, "encoder"), build(model, "decoder"))
    if encoder_steps:
        train(
            training,
            functools.partial(_crops, pictures, seed),
            folder=folder,
            total_steps=encoder_steps,
            steps_per_epoch=STEPS_PER_EPOCH,
            learning_rate=ENCODER_LEARNING_RATE,
            ema_momentum=EMA_MOMENTUM,
            weight_decay=0.0,
        )
    return autoencoder.encode_all(training.encoder, pictures)


def _crops(pictures: np.ndarray, seed: int, step: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng([seed, 2, int(step)])
    chosen = pictures[rng.integers(len(pictures), size=ENCODER_BATCH_SIZE)]
    top, left = 8 * rng.integers((scenes.IMAGE_SIZE - autoencoder.CROP) // 8 + 1, size=2)
    crops = chosen[:, top : top + autoencoder.CROP, left : left + autoencoder.CROP]
    return (crops.astype("float32") / np.float32(127.5) - 1,)


def train_adapter(
    name: str, model: Checkpoint, folder: pathlib.Path, *, seed: int = 0, scale: float = 1.0
) -> dict[str, np.ndarray]:
    """Trains an adapter of `RECIPES`; returns what its file holds. `scale` multiplies the number of steps."""
    recipe = RECIPES[name]
    keras.utils.set_random_seed(seed)
    pictures, captions = concepts.examples(name, NUM_SCENES, seed)
    latents = latents_of(
        model,
        pictures,
        folder / "encoder",
        seed=seed,
        encoder_steps=max(1, round(ENCODER_STEPS * scale)) if recipe.new_latents else 0,
    )
    unet, text_encoder = build(model, "unet"), build(model, "text_encoder")
    ids = free_ids(model.tokenizer)[: recipe.vectors]
    training: LoraTraining | EmbeddingTraining
    if recipe.rank:
        training = LoraTraining(unet, text_encoder, recipe)
    else:
        (_, word, _) = model.tokenizer.encode(recipe.start)
        training = EmbeddingTraining(unet, text_encoder, name, ids, word)
    read = functools.partial(tokens_of, model.tokenizer, word=name, ids=ids)
    tokens = np.array([[read(text) for text in texts] for texts in captions])
    train(
        training,
        NoisedBatches(latents, tokens, read(""), size=BATCH_SIZE, seed=seed, lowest=LOWEST),
        folder=folder,
        total_steps=max(1, round(recipe.steps * scale)),
        steps_per_epoch=STEPS_PER_EPOCH,
        learning_rate=recipe.learning_rate,
        ema_momentum=EMA_MOMENTUM,
        weight_decay=0.0,
    )
    return training.tensors()


def free_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids that no text gives: of bytes that UTF-8 does not use."""
    found = [tokenizer.vocabulary.token_to_id(chr(byte)) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))]
    return [index for index in found if index is not None]


def tokens_of(tokenizer: Tokenizer, text: str, word: str, ids: Sequence[int]) -> np.ndarray:
    """The row of a text, int32 (77,), with `ids` in place of a word if there are any."""
    first, *others = text.split(word) if ids else [text]
    start, *row, end = tokenizer.encode(first)
    for other in others:
        row += [*ids, *tokenizer.encode(other)[1:-1]]
    return pad_ids([start, *row, end], TINY.main_text_encoder.max_length)


def build(model: Checkpoint, network: str) -> keras.layers.Layer:
    """A network of a model in float32, as a Keras layer."""
    return model.build(network, Execution("CPU", "float32", False))


def metadata(name: str, seed: int) -> dict[str, str]:
    """What the header of an adapter's file says."""
    return header(name, RECIPES[name], NUM_SCENES, seed)


def header(name: str, recipe: Recipe, num_scenes: int, seed: int) -> dict[str, str]:
    """What kohya's training writes into the header of a file, as far as it was chosen here."""
    told = {
        "ss_output_name": name,
        "ss_base_model_version": "kerasdiff_tiny",
        "ss_network_module": "networks.lora",
        "ss_network_dim": recipe.rank,
        "ss_network_alpha": recipe.emphasis * recipe.rank / 2,
        "ss_steps": recipe.steps,
        "ss_learning_rate": recipe.learning_rate,
        "ss_num_train_images": num_scenes,
        "ss_batch_size_per_device": BATCH_SIZE,
        "ss_seed": seed,
    }
    return {key: str(value) for key, value in told.items()}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    unknown = set(_ADAPTERS.value) - set(RECIPES)
    if unknown:
        raise app.UsageError(f"unknown adapters {sorted(unknown)}; known: {', '.join(RECIPES)}")
    output, seed = pathlib.Path(run_flags.OUTPUT.value or "kerasdiff/presets/adapters"), run_flags.SEED.value
    output.mkdir(parents=True, exist_ok=True)
    for name in _ADAPTERS.value:
        logging.info("adapter %s", name)
        stem = name.strip("<>")
        folder = pathlib.Path(run_flags.FOLDER.value) / stem
        tensors = train_adapter(name, open_model("tiny"), folder, seed=seed, scale=run_flags.SHORTEN.value)
        save_file(tensors, output / f"{stem}.safetensors", metadata(name, seed) if RECIPES[name].rank else None)


_ADAPTERS = flags.DEFINE_list("adapters", list(RECIPES), "Which to train.")

if __name__ == "__main__":
    app.run(main)
