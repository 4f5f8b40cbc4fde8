"""The tokenizer's folder of a diffusers model, in every layout that transformers has written.

Where its files say different things, they count as in `CLIPTokenizer.from_pretrained` of transformers 5:

- the vocabulary is that of `tokenizer.json`; without it, of `vocab.json` and `merges.txt`;
- added words are those of `added_tokens_decoder` in `tokenizer_config.json`; without it, of `added_tokens.json` and
  then of `tokenizer.json`. They take the ids behind the vocabulary, in the order of the ids that are stated;
- a special token is that of `special_tokens_map.json` unless there is an `added_tokens_decoder`, then that of
  `tokenizer_config.json`, then CLIP's.
"""

import json
import logging
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import AddedToken, models

from kerasdiff.checkpoints.formats.json_settings import JsonSettings, read_json
from kerasdiff.errors import ModelError
from kerasdiff.models.tokenizer import END, START, UNLIMITED, Tokenizer, with_clip_rules

_LOG = logging.getLogger("kerasdiff")
_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")
# In the order in which they take ids, if they are no words of the vocabulary.
_DEFAULTS = {
    "bos_token": START,
    "eos_token": END,
    "unk_token": END,
    "sep_token": None,
    "pad_token": END,
    "cls_token": None,
    "mask_token": None,
}
_EXTRA, _OLD_EXTRA = "extra_special_tokens", "additional_special_tokens"
# A special token as it is stated.
_Special = str | AddedToken
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")
_SIDES = ("left", "right")
_SHORTEST = 3
_NEEDED = "it needs tokenizer.json, or vocab.json and merges.txt"


def read(folder: pathlib.Path) -> Tokenizer:
    """The tokenizer of a folder; ModelError if its files are missing, damaged, or contradict themselves."""
    _check_class(folder.parent / "model_index.json", folder.name)
    config, whole = _optional(folder / "tokenizer_config.json"), _optional(folder / "tokenizer.json")
    settings = JsonSettings(folder / "tokenizer_config.json", config)
    words, merges = _from_whole(folder / "tokenizer.json", whole) if whole else _from_two_files(folder)
    added, named, extra = _tokens(folder, config, whole)
    try:
        model = models.BPE(
            words, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=_word(named["unk_token"])
        )
        vocabulary = with_clip_rules(model)
        vocabulary.add_tokens(_in_order(added, named, extra))
    except Exception as error:
        raise ModelError(f"{folder} has no readable tokenizer: {' '.join(str(error).split())}") from None
    vocabulary.encode_special_tokens = settings.get("split_special_tokens", False, bool)
    taken = {token.content: (vocabulary.token_to_id(token.content), index) for index, token in added.items()}
    moved = [f"{word!r} is {ours}, not {stated}" for word, (ours, stated) in taken.items() if ours != stated]
    if moved:
        _LOG.warning(
            "%s: %d added words have other ids than stated, as transformers counts on behind the vocabulary: %s",
            folder,
            len(moved),
            ", ".join(moved[:3]),
        )
    return Tokenizer(
        vocabulary,
        start=_word(named["bos_token"]),
        end=_word(named["eos_token"]),
        pad_id=vocabulary.token_to_id(_word(named["pad_token"])),
        max_length=_max_length(settings),
        padding_side=_side(settings, "padding_side", whole, "padding"),
        truncation_side=_side(settings, "truncation_side", whole, "truncation"),
    )


def write(tokenizer: Tokenizer, folder: pathlib.Path, max_length: int) -> None:
    """Writes the folder that `read` and transformers read; `max_length` is the text encoder's."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = tokenizer.vocabulary
    model = json.loads(vocabulary.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
    merges = "\n".join(pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", "utf-8")
    added = sorted(vocabulary.get_added_tokens_decoder().items())
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": min(tokenizer.max_length, max_length),
        "bos_token": tokenizer.word(tokenizer.start_id),
        "eos_token": tokenizer.word(tokenizer.end_id),
        "unk_token": model["unk_token"] or tokenizer.word(tokenizer.end_id),
        "pad_token": tokenizer.word(tokenizer.pad_id),
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
        "split_special_tokens": vocabulary.encode_special_tokens,
        "added_tokens_decoder": {
            index: {"content": token.content, **{flag: getattr(token, flag) for flag in _FLAGS}}
            for index, token in added
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _optional(path: pathlib.Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _check_class(index: pathlib.Path, component: str) -> None:
    entry = _optional(index).get(component, ["transformers", _CLASSES[0]])
    name = entry[-1] if isinstance(entry, list) and entry else entry
    if name not in _CLASSES:
        raise ModelError(f"{index}: the {component} is {name!r:.80}; only {_CLASSES[0]} is supported")


def _from_two_files(folder: pathlib.Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and the merges of `vocab.json` and `merges.txt`."""
    words, merges = folder / "vocab.json", folder / "merges.txt"
    if not folder.is_dir():
        raise ModelError(f"there is no folder {folder}; {_NEEDED}")
    if not (words.is_file() and merges.is_file()):
        raise ModelError(f"{folder} has no tokenizer: {_NEEDED}")
    try:
        lines = merges.read_text("utf-8").rstrip("\r\n").split("\n")
    except (OSError, ValueError) as error:
        raise ModelError(f"{merges} cannot be read: {error}") from None
    return _checked_words(words, read_json(words)), _pairs(merges, (x for x in lines if not x.startswith("#version")))


def _from_whole(path: pathlib.Path, whole: Mapping[str, Any]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and the merges of a `tokenizer.json`; the rules in it do not count."""
    model = JsonSettings(path, JsonSettings(path, dict(whole)).get("model", {}, dict))
    if model.get("type", "BPE", str) != "BPE":
        raise ModelError(f"{path} has a vocabulary of the kind {model.get('type', '', str)!r:.80}, and CLIP's is 'BPE'")
    return _checked_words(path, model.get("vocab", {}, dict)), _pairs(path, model.get("merges", [], list))


def _checked_words(path: pathlib.Path, words: dict[str, Any]) -> dict[str, int]:
    of: dict[int, str] = {}
    for word, index in words.items():
        _check_id(path, word, index)
        if of.setdefault(index, word) != word:
            raise ModelError(f"{path}: {of[index]!r:.80} and {word!r:.80} have the same id {index}")
    if not words:
        raise ModelError(f"{path} has no vocabulary")
    return words


def _pairs(path: pathlib.Path, lines: Iterable[Any]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for line in lines:
        pair = line.rstrip("\r").split(" ") if isinstance(line, str) else line
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) and part for part in pair)):
            raise ModelError(f"{path}: merge {len(pairs) + 1} is {line!r:.80}, which are not two parts of a word")
        pairs.append((pair[0], pair[1]))
    return pairs


def _tokens(
    folder: pathlib.Path, config: Mapping[str, Any], whole: Mapping[str, Any]
) -> tuple[dict[int, AddedToken], dict[str, _Special], list[_Special]]:
    """Added words by the ids that are stated; special tokens by their names; further special tokens."""
    values = {key: value for key, value in config.items() if key.endswith("_token") or key in (_EXTRA, _OLD_EXTRA)}
    if _OLD_EXTRA in values and not values.get(_EXTRA):
        values[_EXTRA] = values.pop(_OLD_EXTRA)
    own = {key: values.pop(key) for key in _names(values) if isinstance(values[key], str)} | _popped_names(values)
    if config.get("added_tokens_decoder") is not None:
        path = folder / "tokenizer_config.json"
        stated = JsonSettings(path, dict(config)).get("added_tokens_decoder", {}, dict)
        added = _by_id(path, ((index, _token(path, token)) for index, token in stated.items()))
    else:
        for key, value in _optional(folder / "special_tokens_map.json").items():
            before = _listed(folder, values) if key == _EXTRA and isinstance(value, list) else []
            values[key] = [*before, *(one for one in value if one not in before)] if before else value
        own |= _popped_names(values)
        added = _legacy_words(folder, values, whole)
    if _EXTRA not in values and _OLD_EXTRA in values:
        values[_EXTRA] = values[_OLD_EXTRA]
    objects = [key for key in _names(values) if isinstance(values[key], str | dict)]
    known, named = {token.content: token for token in added.values()}, dict[str, _Special]()
    for key, default in {**_DEFAULTS, **dict.fromkeys((*objects, *own))}.items():
        value = own.get(key, values.get(key))
        value = default if value is None else value
        if value is not None:
            token = _special(f"{folder}: {key}", value)
            named[key] = known.get(_word(token), token)
    return added, named, [_special(f"{folder}: {_EXTRA}", one) for one in _listed(folder, values)]


def _names(values: Mapping[str, Any]) -> list[str]:
    """The names of special tokens that are not CLIP's."""
    return [key for key in values if key.endswith("_token") and key not in _DEFAULTS]


def _listed(folder: pathlib.Path, values: Mapping[str, Any]) -> list[Any]:
    """Further special tokens without names."""
    listed = values.get(_EXTRA) or []
    if not isinstance(listed, list):
        raise ModelError(f"{folder}: {_EXTRA}={listed!r:.80} is not a list of tokens")
    return listed


def _in_order(
    added: Mapping[int, AddedToken], named: Mapping[str, _Special], extra: Iterable[_Special]
) -> list[AddedToken]:
    """All tokens in the order in which they take ids; of two with the same word the flags of the last one count."""
    tokens: list[_Special] = [added[index] for index in sorted(added)]
    stated = {token.content for token in added.values()}
    for token in (*named.values(), *extra):
        if _word(token) not in stated and token not in tokens:
            tokens.append(token)
    ordered = [AddedToken(token, special=True) if isinstance(token, str) else token for token in tokens]
    for token in ordered:
        token.special |= token.content in map(_word, named.values())
    return ordered


def _popped_names(values: dict[str, Any]) -> dict[str, Any]:
    """Further special tokens, if they have names."""
    return values.pop(_EXTRA) if isinstance(values.get(_EXTRA), dict) else {}


def _legacy_words(folder: pathlib.Path, values: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Added words of files from before `added_tokens_decoder`, or without it."""
    names = (*(values.get(key) for key in _DEFAULTS), *_listed(folder, values))
    # Of objects, only those of special_tokens_map.json.
    special = [one.get("content") if isinstance(one, dict) and "__type" not in one else one for one in names]
    path = folder / "added_tokens.json"
    stated = ((index, word, word in special) for word, index in _optional(path).items())
    words = _by_id(path, ((index, AddedToken(word, special=own, normalized=not own)) for index, word, own in stated))
    path = folder / "tokenizer.json"
    listed = JsonSettings(path, dict(whole)).get("added_tokens", [], list)
    return words | _by_id(path, ((one.get("id"), _token(path, one)) for one in listed if isinstance(one, dict)))


def _by_id(path: pathlib.Path, tokens: Iterable[tuple[Any, AddedToken]]) -> dict[int, AddedToken]:
    """Tokens by their ids, which no two may share."""
    found: dict[int, AddedToken] = {}
    for stated, token in tokens:
        index = int(stated) if isinstance(stated, str) and stated.isdecimal() else stated
        _check_id(path, token.content, index)
        if index in found:
            raise ModelError(f"{path}: {found[index].content!r:.80} and {token.content!r:.80} have the same id {index}")
        found[index] = token
    return found


def _check_id(path: pathlib.Path, word: str, index: Any) -> None:
    if type(index) is not int or not 0 <= index < UNLIMITED:
        raise ModelError(f"{path}: {word!r:.80} has the id {index!r:.80}, which is no whole number from 0 on")


def _word(token: _Special) -> str:
    return token if isinstance(token, str) else token.content


def _special(where: str, value: Any) -> _Special:
    """A special token, as it is stated: as a word or as an object."""
    return value if isinstance(value, str) else _token(where, value, special=True)


def _token(where: Any, value: Any, special: bool = False) -> AddedToken:
    """A token from an object; only one with "__type" says itself whether it is special."""
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise ModelError(f"{where}: {value!r:.80} is no token")
    flags = {flag: value[flag] for flag in _FLAGS if value.get(flag) is not None}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise ModelError(f"{where}: {value!r:.200} has something else than true and false")
    if special and "__type" not in value:
        flags["special"] = True
    return AddedToken(value["content"], **flags)


def _max_length(settings: JsonSettings) -> int:
    length = settings.get("model_max_length", settings.get("max_len", UNLIMITED, float), float)
    if not length >= _SHORTEST:
        raise ModelError(f"{settings.path}: model_max_length={length} leaves no place for a word between start and end")
    return int(min(length, UNLIMITED))


def _side(settings: JsonSettings, name: str, whole: Mapping[str, Any], part: str) -> str:
    """On which side rows are filled up or cut: the one of `tokenizer_config.json`, or of `tokenizer.json`."""
    stated = whole.get(part)
    default = stated.get("direction", "right") if isinstance(stated, dict) else "right"
    side = settings.get(name, default, str).lower()
    if side not in _SIDES:
        raise ModelError(f"{settings.path}: {name}={side!r:.80} is neither 'left' nor 'right'")
    return side
