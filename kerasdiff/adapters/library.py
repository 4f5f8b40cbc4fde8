"""The adapters that a model's requests use: each file is opened once, while it stays the same.

What reads them is imported when there is one: most processes start without.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import os
import pathlib
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kerasdiff import notices
from kerasdiff.adapter_files import EmbeddingFile, Lora, UpscalerFile
from kerasdiff.adapters.patches import LoraStack, OpenedLora
from kerasdiff.checkpoints.file_stamps import FileStamp
from kerasdiff.models.config import ModelConfig
from kerasdiff.request import Request

if TYPE_CHECKING:
    from kerasdiff.adapters.lora_file import LoraFile
    from kerasdiff.adapters.textual_inversion import LearnedWords

# Files that stay open.
_MOST_OPEN = 16


def try_files(loras: Sequence[Lora], embeddings: Sequence[EmbeddingFile], *upscalers: UpscalerFile | None) -> None:
    """ModelError if one cannot be read; whether it fits a model is known only once that is there."""
    for upscaler in filter(None, upscalers):
        from kerasdiff.adapters.file_search import find_upscaler
        from kerasdiff.checkpoints.formats.esrgan_file import open_upscaler

        open_upscaler(find_upscaler(upscaler.file))
    if not (loras or embeddings):
        return
    from kerasdiff.adapters.file_search import find_lora
    from kerasdiff.adapters.lora_file import read_lora
    from kerasdiff.adapters.textual_inversion import read_embeddings

    for lora in loras:
        read_lora(find_lora(lora.file))
    for embedding in embeddings:
        read_embeddings(embedding)


class AdapterLibrary:
    """The adapters of one model; threads may share it.

    `parameters` gives name and shape of every parameter of a network, `encode_ids` of each text encoder the ids of a
    text without start and end.
    """

    def __init__(
        self,
        config: ModelConfig,
        parameters: Callable[[str], Mapping[str, tuple[int, ...]]],
        encode_ids: Mapping[str, Callable[[str], Sequence[int]]] | None = None,
    ) -> None:
        self._config, self._parameters, self._encode_ids = config, parameters, encode_ids or {}
        self._words: tuple[Any, Mapping[str, LearnedWords]] = None, {}
        self._loras: collections.OrderedDict[str, tuple[FileStamp | None, LoraFile]] = collections.OrderedDict()
        self._opening = threading.Lock()

    def settled(self, request: Request, own: Sequence[EmbeddingFile] = ()) -> Request:
        """The request with the hash of each file, and of the embeddings those that its texts name.

        `own` are embeddings that all requests have. ModelError if one cannot be had, or does not fit the model.
        """
        loras = tuple(map(self._settled, request.loras))
        passes = (request, request.second_pass(self._config))
        texts = [piece for one in passes if one is not None for piece in _pieces(one)] if request.embeddings else []
        found = (words.used(texts) for words in self.words(request.embeddings).values())
        used = tuple(dict.fromkeys(itertools.chain.from_iterable(found)))
        known = {(word.file, trigger) for word in used for trigger in (None, word.trigger)}
        if request.embeddings != own:  # a generator's own need not be in every prompt, nor all of a folder
            for file in request.embeddings:
                if (file.file, file.trigger) not in known and not os.path.isdir(os.path.expanduser(file.file)):
                    notices.warn(f"no word of {file.file} is in a prompt, so that it changes nothing", stacklevel=4)
        return dataclasses.replace(request, loras=loras, embeddings=used)

    def words(self, files: Sequence[EmbeddingFile]) -> Mapping[str, LearnedWords]:
        """By text encoder, the words of some files and folders, which are read again when they have changed."""
        if not files:
            return {}
        from kerasdiff.adapters.textual_inversion import LearnedWords, by_encoder, read_embeddings

        with self._opening:
            key = [(file, _stamps(file.file)) for file in files]
            if self._words[0] != key:
                found = [word for file in files for word in read_embeddings(file, self._config)]
                parts = by_encoder(found, self._config).items()
                first = next(iter(self._config.text_encoders))
                words = {name: LearnedWords(own, self._encode_ids[name], name == first) for name, own in parts}
                self._words = key, words
            return self._words[1]

    def stack(self, loras: Sequence[Lora]) -> LoraStack:
        """Some LoRAs, opened; ModelError as from `settled`."""
        encoders = self._config.text_encoders
        opened = (
            OpenedLora(self._open(lora), {"unet": lora.scale, **dict.fromkeys(encoders, lora.text_scale)})
            for lora in loras
        )
        return LoraStack(self._config, tuple(opened))

    def _settled(self, lora: Lora) -> Lora:
        found, near = self._open(lora), pathlib.Path(os.path.abspath(os.path.expanduser(lora.file)))
        # One on the hub keeps its name.
        file = str(found.path) if found.path.is_relative_to(near.parent) else lora.file
        return dataclasses.replace(lora, file=file, sha256=found.sha256, short_hash=found.data_sha256[:12])

    def _open(self, lora: Lora) -> LoraFile:
        from kerasdiff.adapters.file_search import check_hash, find_lora

        path = find_lora(lora.file)
        stamp = FileStamp.of(path)
        with self._opening:
            known = self._loras.get(str(path))
            if known is None or known[0] != stamp:
                known = self._loras[str(path)] = stamp, self._read(path)
                while len(self._loras) > _MOST_OPEN:
                    self._loras.popitem(last=False)
            self._loras.move_to_end(str(path))
        found = known[1]
        check_hash(lora.file, lora.sha256, found.sha256)
        return found

    def _read(self, path: os.PathLike[str]) -> LoraFile:
        from kerasdiff.adapters.lora_file import read_lora

        found, networks = read_lora(path), ("unet", *self._config.text_encoders)
        unused = found.fit({name: self._parameters(name) for name in networks}, self._config).unused
        if unused:
            warnings.warn(unused, stacklevel=2)
        return found


def _pieces(request: Request) -> Iterator[str]:
    """What the encoder reads of a request's texts, each piece once."""
    ends = [waypoint.prompt for waypoint in request.towards or ()]
    for negative, texts in enumerate(((*request.prompts, *ends), request.negative_prompts)):
        for text in filter(None, dict.fromkeys(texts)):
            yield from request.parsed(text, bool(negative)).pieces


def _stamps(file: str) -> list[FileStamp | None]:
    """Of a file, or of those below a folder."""
    from kerasdiff.adapters.file_search import files_below

    path = pathlib.Path(file).expanduser()
    return [FileStamp.of(each) for each in (files_below(path) if path.is_dir() else [path])]
