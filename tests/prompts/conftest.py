"""One text encoder with random weights, as transformers has it and as it is here."""

from __future__ import annotations

from typing import Any, NamedTuple

import checkpoints
import numpy as np
import pytest

import kerasdiff
from kerasdiff.diffusion.text_encoding import TextEncoding
from kerasdiff.prompts.schedule import parse


class Encoder(NamedTuple):
    """`tokenizer` and `network` are transformers', `stage` is ours."""

    tokenizer: Any
    network: Any
    stage: Any

    def ours(self, text: str, syntax: str, chunks: int | None = None, **settings) -> np.ndarray:
        """A text's embeddings, (tokens, width)."""
        encoding = TextEncoding(self.stage, **settings)
        (value,) = parse(text, syntax, 10).values
        return encoding.encode(value, encoding.chunks_of(value) if chunks is None else chunks).context


def _encoder(kind: str, folder) -> Encoder:
    pipe = checkpoints.pipeline(kind, folder / "vocabulary")
    norm = pipe.text_encoder.final_layer_norm
    with checkpoints.torch.no_grad():  # or the mean of what it gives would be rounding only
        norm.bias += checkpoints.torch.randn(norm.bias.shape)
    generator = kerasdiff.Generator(checkpoints.save(pipe, folder / "model"), precision="float32", jit_compile=False)
    return Encoder(pipe.tokenizer, pipe.text_encoder, generator._pipeline.conditioner.main)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> Encoder:
    return _encoder("v1", tmp_path_factory.mktemp("encoder"))
