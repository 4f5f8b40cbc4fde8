"""Reads what InvokeAI embeds in its images: JSON since version 2, a line of flags before."""

import contextlib
import re
import shlex
from collections.abc import Mapping
from typing import Any

from kerasdiff.adapter_files import Lora
from kerasdiff.errors import RequestError
from kerasdiff.metadata import foreign, prompt_texts
from kerasdiff.metadata.foreign import ForeignSettings

PROGRAM = "InvokeAI"
# Of its metadata, what says nothing about the image or is said elsewhere.
_SILENT = {
    *("app_version", "generation_mode", "positive_prompt", "negative_prompt", "width", "height", "seed", "steps"),
    *("cfg_scale", "cfg_rescale_multiplier", "scheduler", "model", "rand_device", "strength", "init_image"),
    *("positive_style_prompt", "negative_style_prompt", "refiner_model", "refiner_start", "type", "prompt"),
    *("sampler", "extra", "facetool_strength"),
    *("canvas_v2_metadata", "clip_skip", "loras", "seamless", "seamless_x", "seamless_y"),
}
# Old flags -> names of today.
_FLAGS = {
    "-s": "steps",
    "-S": "seed",
    "-W": "width",
    "-H": "height",
    "-C": "cfg_scale",
    "-A": "scheduler",
    "-f": "strength",
}
# Scores that a refiner reads.
_SCORES = {
    "aesthetic_score": "refiner_positive_aesthetic_score",
    "negative_aesthetic_score": "refiner_negative_aesthetic_score",
}
# Settings that it has of its own there.
_SHARED = ("cfg_scale", "steps", "scheduler")
# Of what steers an image: whether it is a picture as a prompt, and where its model and its strength are.
_STEERING = {
    "controlnets": (False, "control_model", "control_weight"),
    "t2iAdapters": (False, "t2i_adapter_model", "weight"),
    "ipAdapters": (True, "ip_adapter_model", "weight"),
}
# Lists of layers of its canvas, and those of all layers that are taken over.
_LAYERS = ("controlLayers", "regionalGuidance", "referenceImages")
_TAKEN_LAYERS = ("control_layer", "control_adapter_layer", "ip_adapter_layer")
_MODES = {"balanced": "balanced", "more_prompt": "prompt", "more_control": "control"}
_RESIZES = {"just_resize": "stretch", "just_resize_simple": "stretch", "crop_resize": "cover"}
_COMPEL_NODE = "sdxl_compel_prompt"
# Of such a node, heights and tops first.
_SIZES = {
    "original_size": ("original_height", "original_width"),
    "crop": ("crop_top", "crop_left"),
    "target_size": ("target_height", "target_width"),
}
_NEGATIVE = re.compile(r"\[([^\[\]]*)\]")


def read(texts: Mapping[str, str]) -> ForeignSettings | None:
    """The settings in a file's texts; None if they are not of this kind."""
    values = foreign.document(texts.get("invokeai_metadata"), PROGRAM)
    if values is not None:
        settings = _settings(values, values.get("app_version"))
        with contextlib.suppress(RequestError):  # all that matters is in the metadata
            _take_sizes(settings, foreign.document(texts.get("invokeai_graph"), PROGRAM) or {})
        return settings
    old = foreign.document(texts.get("sd-metadata"), PROGRAM)
    if old is not None:
        image = old.get("image")
        values = dict(image) if isinstance(image, dict) else {}
        values |= {"scheduler": values.get("sampler"), "model": old.get("model_weights", old.get("model"))}
        values |= _split(values.get("prompt"))
        return _settings(values, old.get("app_version"))
    return None if "Dream" not in texts else _of_flags(texts["Dream"])


def _settings(values: Mapping[str, Any], version: Any) -> ForeignSettings:
    program = f"{PROGRAM} {version}" if isinstance(version, str) else PROGRAM
    settings = ForeignSettings(program)
    if values.get("rand_device") == "cpu":
        settings.noise = foreign.CPU_NOISE
    settings.take("prompt", values.get("positive_prompt"), foreign.text, "prompt")
    settings.take("negative_prompt", values.get("negative_prompt"), foreign.text, "negative prompt")
    for end in ("positive", "negative"):
        style = values.get(f"{end}_style_prompt")
        if isinstance(style, str) and style.strip() and style != values.get(f"{end}_prompt"):
            settings.leave_out(f"{end} style prompt, as both text encoders read one text here", style)
    if not settings.arguments.get("negative_prompt"):  # which is zeros there
        settings.arguments.pop("negative_prompt", None)
    settings.take("num_steps", values.get("steps"), foreign.steps, "steps")
    settings.take("seed", values.get("seed"), foreign.seed, "seed")
    settings.take("guidance_scale", values.get("cfg_scale"), foreign.number, "cfg_scale")
    rescale = values.get("cfg_rescale_multiplier") or None
    settings.take("guidance_rescale", rescale, foreign.share, "cfg_rescale_multiplier")
    settings.take_size(values.get("width"), values.get("height"))
    axes = "".join(axis for axis in "xy" if values.get(f"seamless_{axis}") is True)
    if axes or values.get("seamless") is True:
        settings.arguments["tile"] = axes or "xy"
    scheduler = values.get("scheduler")
    if isinstance(scheduler, str) and scheduler.endswith("_k"):
        settings.take_sampler(scheduler.removesuffix("_k"), "karras")
    else:
        settings.take_sampler(scheduler)
    settings.take("clip_skip", values.get("clip_skip") or None, foreign.clip_skip, "clip skip")
    texts = [settings.arguments.get(name, "") for name in ("prompt", "negative_prompt")]
    settings.embeddings = [each for text in texts for each in prompt_texts.embeddings_of_invokeai(text)]
    if any(map(prompt_texts.is_compel, texts)):
        settings.take_syntax(prompt_syntax="compel")
    loras = values.get("loras")
    for entry in loras if isinstance(loras, list) else ():
        entry = entry if isinstance(entry, dict) else {}
        name, scale = _model_name(entry.get("model", entry.get("lora"))), foreign.number(entry.get("weight"))
        if name is None or scale is None:
            settings.leave_out("LoRA", f"{entry!r:.40}")
        else:
            settings.loras.append(Lora(name, scale, scale))
    settings.model = _model_name(values.get("model"))
    _take_controls(settings, values)
    silent = {*_SILENT, *_STEERING, "control_layers"} | _take_refiner(settings, values)
    mode = values.get("generation_mode", values.get("type"))
    kind = mode.removeprefix("sdxl_") if isinstance(mode, str) else None
    settings.from_picture = values.get("init_image") is not None or kind in ("img2img", "inpaint", "outpaint")
    if settings.from_picture:
        settings.take("strength", values.get("strength"), foreign.share, "strength")
    for name, value in values.items():
        if name not in silent and value not in (None, 0, False, [], {}, ""):
            settings.leave_out(name.replace("_", " "), _shown(value))
    return settings


def _take_controls(settings: ForeignSettings, values: Mapping[str, Any]) -> None:
    """ControlNets and adapters; what else layers are is listed."""
    for kind, (picture, model, weight) in _STEERING.items():
        for entry in _objects(values.get(kind)):
            ends = entry.get("begin_step_percent", 0), entry.get("end_step_percent", 1)
            settings_of = entry.get(model), entry.get(weight, 1), ends, entry.get("control_mode")
            _take_control(settings, picture, *settings_of, entry.get("resize_mode"), kind.removesuffix("s"))
    older, canvas = (values.get(name) for name in ("control_layers", "canvas_v2_metadata"))
    layers = _objects(older.get("layers")) if isinstance(older, dict) else []
    for name in _LAYERS:
        layers += _objects(canvas.get(name)) if isinstance(canvas, dict) else []
    for layer in layers:
        kind, adapter = str(layer.get("type", "")), layer.get("controlAdapter", layer.get("ipAdapter"))
        if layer.get("isEnabled", True) is False:
            continue
        if kind not in _TAKEN_LAYERS or not isinstance(adapter, dict) or adapter.get("type") == "control_lora":
            settings.leave_out(f"the layer {kind.replace('_', ' ')}")
            continue
        share = adapter.get("beginEndStepPct")
        ends = (share[0], share[1]) if isinstance(share, list) and len(share) == 2 else (0, 1)
        settings_of = adapter.get("model"), adapter.get("weight", 1), ends, adapter.get("controlMode")
        _take_control(settings, kind == "ip_adapter_layer", *settings_of, None, kind.replace("_", " "))


def _take_control(
    settings: ForeignSettings,
    picture: bool,
    model: Any,
    scale: Any,
    ends: tuple[Any, Any],
    mode: Any,
    resize: Any,
    called: str,
) -> None:
    mode = _MODES.get("balanced" if mode is None else str(mode))
    if settings.take_control(_model_name(model), picture, scale, ends, mode, called) and not picture:
        known = _RESIZES.get("just_resize" if resize is None else str(resize))
        settings.resize = settings.resize or known or "cover"
        if known is None:
            settings.leave_out(f"{called} resize mode", f"{resize!s:.40}")


def _objects(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _take_refiner(settings: ForeignSettings, values: Mapping[str, Any]) -> set[str]:
    """The second model, if there is one; returns what of its own settings need not be listed."""
    settings.refiner = _model_name(values.get("refiner_model"))
    if settings.refiner is None:
        return {name for name in values if name.startswith("refiner_")}
    settings.take("denoising_end", values.get("refiner_start"), foreign.share, "refiner start")
    for name, theirs in _SCORES.items():
        settings.take(name, values.get(theirs), foreign.score, theirs.replace("_", " "))
    same = {f"refiner_{name}" for name in _SHARED if values.get(f"refiner_{name}") == values.get(name)}
    return {*_SCORES.values(), *same}


def _take_sizes(settings: ForeignSettings, graph: Mapping[str, Any]) -> None:
    """What the graph that was run says of sizes, which the metadata do not have."""
    nodes, edges = graph.get("nodes"), graph.get("edges")
    ends = [(_end(edge, "source"), _end(edge, "destination")) for edge in edges] if isinstance(edges, list) else []

    def sizes(field: str) -> dict[str, tuple[Any, Any]]:
        nearest = {node for (node, _), (_, to) in ends if to == field}
        # What is gathered to a list comes from one node more.
        for name in (*nearest, *(node for (node, _), (to, _) in ends if to in nearest)):
            node = nodes.get(name) if isinstance(nodes, dict) else None
            if isinstance(node, dict) and node.get("type") == _COMPEL_NODE:
                return {key: (node.get(first), node.get(second)) for key, (first, second) in _SIZES.items()}
        return {}

    settings.take_sizes(sizes("positive_conditioning"), sizes("negative_conditioning"))


def _end(edge: Any, which: str) -> tuple[str, str]:
    """Node and field that an edge comes from, or goes to."""
    end = edge.get(which) if isinstance(edge, dict) else None
    node, field = (end.get("node_id"), end.get("field")) if isinstance(end, dict) else ("", "")
    return str(node), str(field)


def _model_name(model: Any) -> str | None:
    """The name of a model, which may be an object."""
    if isinstance(model, dict):
        model = next((model[name] for name in ("name", "model_name", "key") if isinstance(model.get(name), str)), None)
    return model if isinstance(model, str) else None


def _shown(value: Any) -> str:
    """A setting's value; of a list of models how many."""
    return f"({len(value)})" if isinstance(value, list | dict) else f"{value}"


def _split(prompt: Any) -> dict[str, Any]:
    """The two prompts of version 2, in which the negative one is in brackets."""
    if isinstance(prompt, list):
        parts = [part.get("prompt") if isinstance(part, dict) else part for part in prompt]
        prompt = " ".join(part for part in parts if isinstance(part, str))
    if not isinstance(prompt, str):
        return {}
    negative = " ".join(_NEGATIVE.findall(prompt))
    return {"positive_prompt": " ".join(_NEGATIVE.sub(" ", prompt).split()), "negative_prompt": negative}


def _of_flags(line: str) -> ForeignSettings | None:
    """The settings of a line such as `"a cat" -s 50 -S 7 -W 512 -H 512 -C 7.5 -A k_lms`."""
    try:
        words = shlex.split(line[:100_000])
    except ValueError:
        return None
    first = next((index for index, word in enumerate(words) if word in _FLAGS), len(words))
    values: dict[str, Any] = _split(" ".join(words[:first]))
    for index in range(first, len(words)):
        flag = next((flag for flag in _FLAGS if words[index].startswith(flag)), None)
        if flag is not None:
            after = words[index + 1 : index + 2]
            values[_FLAGS[flag]] = words[index].removeprefix(flag) or (after[0] if after else None)
    return _settings(values, None) if len(values) > 2 else None
