"""What the U-Net of a model reads of a request: its text encoders, and what they make of texts."""

from __future__ import annotations

from collections.abc import Sequence

from kerasdiff.adapter_files import EmbeddingFile
from kerasdiff.adapters.library import AdapterLibrary
from kerasdiff.checkpoints.checkpoint import Checkpoint
from kerasdiff.diffusion.conditioning import TextConditioning
from kerasdiff.diffusion.memory_model import MemoryModel
from kerasdiff.diffusion.network import Networks
from kerasdiff.diffusion.overrides import OF_GENERATE, Names, Overrides
from kerasdiff.diffusion.residency import Residency
from kerasdiff.diffusion.text_embedding import TextEmbedding, side_by_side
from kerasdiff.diffusion.text_encoding import JointEncoding, TextEncoding
from kerasdiff.diffusion.text_stage import TextStage
from kerasdiff.prompts.schedule import Value
from kerasdiff.request import Request
from kerasdiff.runtime.program_cache import ProgramCache
from kerasdiff.runtime.retries import Retries


class Conditioner:
    """The text encoders of a model, each a stage of its own; all read the same texts, with tokenizers of their own.

    `costs`, `retries` and `residency` are the pipeline's, as are `networks`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        networks: Networks,
        run: tuple[bool, ProgramCache],
        costs: MemoryModel,
        retries: Retries,
        residency: Residency,
    ) -> None:
        self._config, self._costs, self._retries = checkpoint.config, costs, retries
        self._residency = residency
        self.stages: dict[str, TextStage] = {}
        for name, config in self._config.text_encoders.items():
            tokenizer, words = checkpoint.tokenizers[name], name.replace("_", " ")
            self.stages[name] = TextStage(networks.network(name), *run, tokenizer, config, words, not self.stages)
        shortest = min(stage.length for stage in self.stages.values())
        for stage in self.stages.values():
            stage.length = shortest  # or contexts could not be joined, token by token
        ids = {name: stage.ids for name, stage in self.stages.items()}
        self.adapters = AdapterLibrary(self._config, lambda name: networks.network(name).shapes, ids)

    @property
    def main(self) -> TextStage:
        """The first encoder, whose tokens prompts are counted in."""
        return next(iter(self.stages.values()))

    def texts(self, request: Request, overrides: Overrides, names: Names = OF_GENERATE) -> TextConditioning:
        """What a request's images read; `names` are what messages call the embeddings in `overrides`."""
        encoding, halves = self.encoding(request.embeddings, request.emphasis), self.halves(request)
        return TextConditioning(self._config, encoding, self.encode, request, overrides, halves, names)

    def encoding(self, embeddings: Sequence[EmbeddingFile], emphasis: str = "original") -> JointEncoding:
        """How texts are encoded with some embeddings (textual inversion)."""
        words, stages = self.adapters.words(embeddings), self.stages.items()
        parts = (TextEncoding(stage, emphasis=emphasis, words=words.get(name)) for name, stage in stages)
        return JointEncoding(tuple(parts))

    def halves(self, request: Request) -> bool:
        """Whether a request's steps run with and without the prompt; a U-Net may take guidance as an input instead."""
        return request.guided and not self._config.unet.embeds_guidance

    def encode(self, encoding: JointEncoding, value: Value, chunks: int) -> TextEmbedding:
        """What all encoders make of a text, of so many chunks each."""
        parts = []
        for name, part in zip(self.stages, encoding.parts, strict=True):
            self._residency.enter(name)
            for attempt in self._retries.attempts(self._costs.text(name, self._residency.pending_bytes(name))):
                with attempt, self._residency.sparing():
                    embedding = part.encode(value, chunks)
            parts.append(embedding)
        return side_by_side(parts)
