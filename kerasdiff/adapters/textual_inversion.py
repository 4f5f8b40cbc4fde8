"""Embeddings (Gal et al. 2022, "An image is worth one word", arXiv:2208.01618): words with vectors of their own."""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import logging
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from kerasdiff import validation
from kerasdiff.adapter_files import EmbeddingFile
from kerasdiff.adapters.file_search import check_hash, files_below, find_embedding, sha256
from kerasdiff.checkpoints import recognition
from kerasdiff.errors import ModelError
from kerasdiff.models.config import FAMILIES, ModelConfig
from kerasdiff.prompts.tokens import Token
from kerasdiff.runtime.safetensors_map import DTYPES, TensorFiles

_LOG = logging.getLogger("kerasdiff")
# Width of the vectors -> the family whose text encoder has it.
_WIDTHS = {768: "sd1", 1024: "sd2", 1280: "sdxl"}
# What vectors for one text encoder of Stable Diffusion XL are called -> its network.
_ENCODERS = {
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "text_encoders_0": "text_encoder",
    "text_encoders_1": "text_encoder_2",
}
# As many as a text encoder reads, without start and end.
_MOST_VECTORS = 75
_MOST_WORDS = 100
_LONGEST_WORD = 200
# In a LoRA's file: the name of the embedding, and what it is called in a file of its own.
_BUNDLED = re.compile(r"bundle_emb\.(.+?)\.(string_to_(?:param|token)\b.*|emb_params|clip_[lg]|[^.]+)")
_OF_LATER_MODELS = "t5xxl"
# What AUTOMATIC1111's interface writes into a picture: JSON in base64.
_PNG, _PNG_TEXT = b"\x89PNG\r\n\x1a\n", b"sd-ti-embedding"
_MOST_PNG_CHUNKS, _MOST_PNG_TEXT = 10_000, 2**22
_STEPS = ("step", "steps", "ss_steps")


@dataclasses.dataclass(frozen=True, eq=False)
class LearnedWord:
    """A word of a file, with its vectors for one text encoder.

    Attributes:
        file: a path, or a name on the hub.
        sha256: of the file, 64 hex digits.
        triggers: what a prompt may call it; the first one is the user's, or else the file's own.
        vectors: float32 (n, width), of the places that it takes in a prompt.
        steps: for how long it was trained, if the file says so.
        trained_on: the model that it was trained on, or its family, if the file says so.
        encoder: the network that the vectors are for, if the file says so.
    """

    file: str
    sha256: str
    triggers: tuple[str, ...]
    vectors: np.ndarray
    steps: int | None = None
    trained_on: str | None = None
    encoder: str | None = None

    @property
    def family(self) -> str | None:
        """What models it is for, as far as its width tells, or that it has vectors for one of two text encoders."""
        family = _WIDTHS.get(self.width) if self.encoder is None else "sdxl"
        return None if family is None else FAMILIES[family]

    @property
    def width(self) -> int:
        """Of each vector."""
        return self.vectors.shape[1]


class LearnedWords:
    """Words that replace runs of token ids, the longest run first, as in AUTOMATIC1111's interface.

    `encode_ids` gives the ids of a text without start and end, as `TextStage.ids` does. Where two words have the same
    trigger, the first one is taken, and one of the text encoders `reports` it.
    """

    def __init__(
        self, words: Sequence[LearnedWord], encode_ids: Callable[[str], Sequence[int]], reports: bool = True
    ) -> None:
        self._encode_ids = encode_ids
        self._entries: dict[tuple[int, ...], tuple[LearnedWord, str]] = {}
        # Other names of a word give way to the first one of another.
        others = [(word, trigger) for word in words for trigger in word.triggers[1:]]
        for word, trigger in [*((word, word.triggers[0]) for word in words), *others]:
            ids = tuple(encode_ids(trigger))
            if not ids:
                raise ModelError(f"{word.file}: the trigger {validation.shown(trigger)} has no token; give another one")
            first, _ = self._entries.setdefault(ids, (word, trigger))
            if not reports:
                continue
            if trigger == word.triggers[0] and not np.array_equal(first.vectors, word.vectors):
                _LOG.warning("%r is the trigger of %s and of %s; the first one is used", trigger, first.file, word.file)
            elif first is word and len(ids) == 1:
                _LOG.info("%r is a word of the model, too; it stands for the embedding in %s", trigger, word.file)
        self._lengths = sorted({len(ids) for ids in self._entries}, reverse=True)
        triggers = sorted((trigger for _, trigger in self._entries.values()), key=len, reverse=True)
        self._triggers = re.compile("|".join(map(re.escape, triggers)) or r"(?!)", re.IGNORECASE)

    def spaced(self, text: str) -> str:
        """A text in which triggers such as "<toy>" are apart from the signs around them, so that they are found."""
        return self._triggers.sub(_apart, text)

    def tokens(self, ids: Sequence[int]) -> list[Token]:
        """The tokens of some ids, with those of triggers replaced by vectors, which stay together."""
        found: list[Token] = []
        for run, entry in self._runs(ids):
            if entry is None:
                found.append(Token(run[0]))
                continue
            word, trigger = entry
            for index, vector in enumerate(word.vectors):
                found.append(Token(run[0], vector, joined=index > 0, word=trigger))
        return found

    def used(self, texts: Iterable[str]) -> tuple[EmbeddingFile, ...]:
        """Those that occur in texts, each with the trigger that is used there."""
        runs = (run for text in texts for run in self._runs(self._encode_ids(self.spaced(text))))
        found = {entry for _, entry in runs if entry is not None}
        entries = (entry for entry in self._entries.values() if entry in found)
        return tuple(EmbeddingFile(word.file, trigger, word.sha256) for word, trigger in entries)

    def _runs(self, ids: Sequence[int]) -> Iterator[tuple[Sequence[int], tuple[LearnedWord, str] | None]]:
        """Runs of ids that stand for a word, and the other ids one by one."""
        place = 0
        while place < len(ids):
            runs = (tuple(ids[place : place + length]) for length in self._lengths)
            run = next((run for run in runs if run in self._entries), None)
            yield (ids[place : place + 1], None) if run is None else (run, self._entries[run])
            place += 1 if run is None else len(run)


def _apart(match: re.Match[str]) -> str:
    """A trigger with spaces where it begins or ends with a sign: signs in a row are read as one word."""
    text = match[0]
    return f"{'' if text[0].isalnum() else ' '}{text}{'' if text[-1].isalnum() else ' '}"


def read_embeddings(file: EmbeddingFile, config: ModelConfig | None = None) -> list[LearnedWord]:
    """The words of a file, or of all files of a folder that are for a model; None is any.

    A trigger of the user takes the place of the file's own; where there are several words, it chooses one. A word for
    several text encoders comes once for each.

    Raises:
        ModelError: there are none, they are damaged or for another model, or the file is another than its hash says.
    """
    path = find_embedding(file.file)
    found = _of_folder(path, config) if path.is_dir() else _of_file(path, config, file.file)
    for word in found:
        check_hash(word.file, file.sha256, word.sha256)
    if file.trigger is not None:
        found = _called(file, file.trigger, found)
    for word in found:
        if not word.triggers:
            raise ModelError(f"{validation.line(word.file)} has a name that is no word for a prompt; give a trigger")
    return found


def by_encoder(words: Sequence[LearnedWord], config: ModelConfig) -> dict[str, list[LearnedWord]]:
    """The words of each of a model's text encoders; they may come from a file for each.

    Raises:
        ModelError: one is not for all of them.
    """
    found: dict[str, list[LearnedWord]] = {network: [] for network in config.text_encoders}
    for word in words:
        others = _others(word, words, config)
        if isinstance(others, str):
            raise ModelError(others)
        triggers = tuple(each for each in word.triggers if all(each in other.triggers for other in others))
        found[_network(word, config)].append(dataclasses.replace(word, triggers=triggers))
    return found


def _network(word: LearnedWord, config: ModelConfig) -> str:
    """The text encoder that a word's vectors are for."""
    of_width = (network for network, encoder in config.text_encoders.items() if encoder.width == word.width)
    return word.encoder or next(of_width)


def _others(word: LearnedWord, words: Iterable[LearnedWord], config: ModelConfig) -> list[LearnedWord] | str:
    """The same word for each of a model's other text encoders, or one line on what is missing."""
    own, found = _network(word, config), []
    for network, encoder in config.text_encoders.items():
        if network == own:
            continue
        same = (each for each in words if set(each.triggers) & set(word.triggers))
        other = next((each for each in same if _network(each, config) == network), None)
        if other is None:
            half = "" if word.encoder is None else " of Stable Diffusion XL that lacks a half"
            kind = half or (f" for {word.family}" if word.width in _WIDTHS and own == "text_encoder" else "")
            return (
                f"{word.file} is an embedding{kind} (width {word.width}), and this model, {FAMILIES[config.family]}, "
                f"needs vectors of width {encoder.width} as well: a file with clip_l and clip_g, or one for each"
            )
        if len(other.vectors) != len(word.vectors):
            counts = f"{len(word.vectors)} vectors for one text encoder and {len(other.vectors)} for the other"
            return f"{word.file} has {counts}; a word takes as many places in both"
        found.append(other)
    return found


def _called(file: EmbeddingFile, trigger: str, found: list[LearnedWord]) -> list[LearnedWord]:
    wanted = trigger.casefold()
    chosen = [word for word in found if wanted in map(str.casefold, word.triggers)]
    if not chosen and len({word.triggers for word in found}) > 1:
        names = ", ".join(validation.shown(word.triggers[0]) for word in found[:5] if word.triggers)
        more = ", ..." if len(found) > 5 else ""
        raise ModelError(f"{file.file} has {len(found)} embeddings and none is called {trigger!r}: {names}{more}")
    return [dataclasses.replace(word, triggers=(trigger,)) for word in chosen or found]


def _of_folder(folder: pathlib.Path, config: ModelConfig | None) -> list[LearnedWord]:
    """The words of all files below; pictures without an embedding are no mistake."""
    files = files_below(folder)
    found: list[LearnedWord] = []
    left_out: dict[str, str] = {}
    for path in files:
        try:
            if path.suffix.lower() != ".png" or _png_text(path) is not None:
                found += _of_file(path, config, str(path))
        except (ModelError, OSError) as error:
            left_out[str(path)] = str(error)
    for word in found:
        if config is not None and isinstance(others := _others(word, found, config), str):
            left_out[word.file] = others
    found = [word for word in found if word.file not in left_out]
    reason = f"; {next(iter(left_out.values()))}" if left_out else ""
    if not found:
        raise ModelError(f"{folder} has no embedding for this model{reason}")
    if left_out:
        _LOG.warning("%s: %d of %d files are left out%s", folder, len(left_out), len(files), reason)
    return found


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A word as a file has it, before its vectors are read."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    encoder: str | None = None


def _of_file(path: pathlib.Path, config: ModelConfig | None, where: str) -> list[LearnedWord]:
    try:
        if not path.is_file():
            raise ModelError(f"{path} is not a file")
        with open(path, "rb") as file:
            entries, facts = _of_picture(path) if file.read(8) == _PNG else _of_tensors(path)
            if not entries:
                raise ModelError(f"{path} has no embedding: it is empty")
            if config is not None and config.unet.embeds_sizes:  # a refiner leaves the half that it does not have
                entries = [each for each in entries if each.encoder in (None, *config.text_encoders)]
                if not entries:
                    raise ModelError(f"{path} has no clip_g, and {FAMILIES[config.family]} reads nothing else")
            vectors = [_vectors(path, entry, config) for entry in entries]
        digest = sha256(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or validation.reason(error)}") from None
    stated = [str(facts.get(name)) for name in _STEPS]
    steps = next((int(step) for step in stated if re.fullmatch(r"\d{1,9}", step)), None)
    trained_on = facts.get("sd_checkpoint_name") or facts.get("modelspec.architecture")
    model = validation.line(str(trained_on)) if trained_on else None
    words = []
    for entry, array in zip(entries, vectors, strict=True):
        names = dict.fromkeys(map(str.strip, entry.names))
        triggers = tuple(name for name in names if 0 < len(name) <= _LONGEST_WORD and name.isprintable())
        words.append(LearnedWord(where, digest, triggers, array, steps, model, entry.encoder))
    return words


def _of_tensors(path: pathlib.Path) -> tuple[list[_Entry], dict[str, Any]]:
    tensors = TensorFiles([path])
    names = [name for name in tensors if name.startswith("bundle_emb.")] or list(tensors)
    entries = []
    for name in names:
        bundled = _BUNDLED.fullmatch(name)
        key = bundled[2] if bundled else name
        if key == _OF_LATER_MODELS:
            raise ModelError(
                f"{path} is an embedding for Stable Diffusion 3 or a later model: it has {name}; "
                "only those for Stable Diffusion 1.x, 2.x and XL are supported"
            )
        if key.startswith("string_to_token"):
            continue
        shape = tensors.shape(name)
        if len(names) > _MOST_WORDS or len(shape) not in (1, 2) or tensors.dtype(name) not in DTYPES:
            raise _foreign(path, tensors, name)
        if bundled:
            triggers: tuple[str, ...] = (bundled[1],)
        elif key in ("emb_params", "*", *_ENCODERS) or key.startswith("string_to_param"):
            triggers = (path.stem,)
        else:
            triggers = (key, path.stem) if len(names) == 1 else (key,)
        entries.append(_Entry(triggers, shape, functools.partial(tensors.read, name), _ENCODERS.get(key)))
    if len({entry.shape[-1] for entry in entries if entry.encoder is None}) > 1:
        raise _foreign(path, tensors, names[-1])
    return sorted(entries, key=lambda entry: entry.encoder or ""), tensors.metadata


def _foreign(path: pathlib.Path, tensors: TensorFiles, name: str) -> ModelError:
    kind = recognition.of_tensors(tensors)
    if kind is not None and kind.name != "a textual inversion":
        advice = ": give it with loras=" if kind.name == "a LoRA" else ""
        return ModelError(f"{path} is {kind.name}, not an embedding{advice}")
    return ModelError(
        f"{path} is not an embedding: its tensor {validation.shown(name)} is {tensors.dtype(name)} of the shape "
        f"{tensors.shape(name)}, among {len(tensors)}; vectors of the shape (n, width) are expected"
    )


def _of_picture(path: pathlib.Path) -> tuple[list[_Entry], dict[str, Any]]:
    text = _png_text(path)
    if text is None:
        raise ModelError(
            f"{path} is a picture without the text {_PNG_TEXT.decode()}, in which AUTOMATIC1111's interface keeps an "
            "embedding; give the embedding as a .safetensors file"
        )
    try:
        document = json.loads(base64.b64decode(text))
        (values,) = document["string_to_param"].values()
        with np.errstate(over="ignore"):
            array = np.array(values["TORCHTENSOR"], "float32")
        name = document.get("name")
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise ModelError(f"{path}: its text {_PNG_TEXT.decode()} is damaged, or holds no embedding") from None
    if array.ndim not in (1, 2):
        raise ModelError(f"{path}: its embedding has the shape {array.shape}; (n, width) is expected")
    own = (name,) if isinstance(name, str) else ()
    return [_Entry((*own, path.stem), array.shape, lambda: array)], document


def _png_text(path: pathlib.Path) -> bytes | None:
    """What a picture's text says of an embedding, without looking at its pixels; None if there is no such text."""
    with open(path, "rb") as file:
        file.seek(len(_PNG))
        for _ in range(_MOST_PNG_CHUNKS):
            head = file.read(8)
            length = int.from_bytes(head[:4])
            if len(head) < 8 or head[4:] == b"IEND":
                break
            if head[4:] != b"tEXt" or length > _MOST_PNG_TEXT:
                file.seek(length + 4, os.SEEK_CUR)
                continue
            chunk, checksum = file.read(length), int.from_bytes(file.read(4))
            keyword, _, text = chunk.partition(b"\0")
            if keyword == _PNG_TEXT:
                return text if zlib.crc32(head[4:] + chunk) == checksum else b""
    return None


def _vectors(path: pathlib.Path, entry: _Entry, config: ModelConfig | None) -> np.ndarray:
    """float32 (n, width); sizes are checked before anything is read."""
    count, found = (1, *entry.shape)[-2:]
    if not count or not found:
        raise ModelError(f"{path} has an embedding without vectors: its shape is {entry.shape}")
    if config is not None:
        _check_width(path, entry.encoder, found, config)
    if count > _MOST_VECTORS:
        raise ModelError(f"{path} has {count} vectors for one word; a prompt has {_MOST_VECTORS} places")
    with np.errstate(over="ignore"):
        vectors = np.array(entry.read(), "float32").reshape(count, found)
    if not np.isfinite(vectors).all():
        raise ModelError(f"{path} has numbers that are not finite; it is damaged, or its training went wrong")
    return vectors


def _check_width(path: pathlib.Path, encoder: str | None, width: int, config: ModelConfig) -> None:
    """Raises ModelError if a model has no text encoder for vectors of this width."""
    widths = {network: each.width for network, each in config.text_encoders.items()}
    if encoder is not None and not config.unet.embeds_sizes:
        family = FAMILIES[config.family]
        raise ModelError(f"{path} is an embedding for {FAMILIES['sdxl']} (clip_l, clip_g), and this model is {family}")
    if width not in (widths.values() if encoder is None else (widths[encoder],)):
        meant = f" for {FAMILIES[_WIDTHS[width]]} (width {width})" if width in _WIDTHS else f" of width {width}"
        raise ModelError(f"{path} is an embedding{meant}; this model reads {' and '.join(map(str, widths.values()))}")
