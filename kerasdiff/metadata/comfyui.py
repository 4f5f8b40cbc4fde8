"""Reads the graph that ComfyUI embeds in its images: nodes with inputs, which are values or links to other nodes."""

from collections.abc import Iterator, Mapping
from typing import Any

from kerasdiff.adapter_files import Lora
from kerasdiff.errors import RequestError
from kerasdiff.metadata import foreign, prompt_texts
from kerasdiff.metadata.foreign import ForeignSettings

PROGRAM = "ComfyUI"
_SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
# Inputs of nodes in which a text or a number may be, where an input is a link.
_TEXTS = ("text", "string", "value", "prompt", "positive", "text_g", "populated_text", "STRING")
_NUMBERS = ("value", "seed", "noise_seed", "int", "number", "INT", "float", "Number")
_SPACINGS = {
    "normal": "linspace",
    "karras": "karras",
    "exponential": "exponential",
    "beta": "beta",
    "simple": "trailing",
    "sgm_uniform": "trailing",
    "ddim_uniform": "leading",
}
# Of these the ones that lead nearly, not exactly, to the same levels.
_NEARLY = ("simple", "sgm_uniform", "ddim_uniform")
# Nodes that are read, or say nothing about the image.
_KNOWN = {
    *_SAMPLERS,
    *("RandomNoise", "BasicScheduler", "KSamplerSelect", "CFGGuider", "BasicGuider", "CheckpointLoaderSimple"),
    *("CLIPTextEncode", "CLIPTextEncodeSDXL", "CLIPTextEncodeSDXLRefiner", "ConditioningZeroOut", "EmptyLatentImage"),
    *("VAEEncode", "VAEEncodeForInpaint", "SetLatentNoiseMask", "VAEDecode"),
    *("LoadImage", "SaveImage", "PreviewImage", "Note", "CLIPSetLastLayer"),
}
# Inputs of CLIPTextEncodeSDXL.
_SIZES = {
    "original_size": ("height", "width"),
    "crop": ("crop_h", "crop_w"),
    "target_size": ("target_height", "target_width"),
}
_LORAS = ("LoraLoader", "LoraLoaderModelOnly")
# Nodes that have the conditioning go through a control network, and those that load one.
_CONTROLS = ("ControlNetApply", "ControlNetApplyAdvanced")
_CONTROL_LOADERS = ("ControlNetLoader", "DiffControlNetLoader")
# No graph of a person has more nodes, or more samplers in a row.
_MOST_NODES, _MOST_SAMPLERS = 2000, 20
Node = Mapping[str, Any]


def read(texts: Mapping[str, str]) -> ForeignSettings | None:
    """The settings in a file's texts; None if they are not of this kind."""
    if not texts.get("prompt", "").lstrip().startswith("{"):
        if "workflow" in texts and "nodes" in texts["workflow"]:
            raise RequestError("it has only the workflow of ComfyUI's editor, and not what was run (prompt)")
        return None
    values = foreign.document(texts["prompt"], PROGRAM) or {}
    nodes = {str(name): node for name, node in values.items() if _is_node(node)}
    if len(nodes) > _MOST_NODES:
        raise RequestError(f"ComfyUI's graph has {len(nodes)} nodes; at most {_MOST_NODES} are read")
    if not nodes:
        return None
    return _Graph(nodes).settings()


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)


class _Graph:
    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self._nodes = nodes

    def settings(self) -> ForeignSettings:
        settings = ForeignSettings(PROGRAM, noise=foreign.CPU_NOISE)
        sampler = self._first_sampler()
        if sampler is None:
            raise RequestError("ComfyUI's graph has no sampler that is known here (KSampler)")
        inputs = sampler["inputs"]
        # Of the newer nodes each holds a part.
        guider, sigmas = self._linked(inputs.get("guider")), self._linked(inputs.get("sigmas"))
        chosen, noise = self._linked(inputs.get("sampler")), self._linked(inputs.get("noise"))
        merged: dict[str, Any] = {}
        for part in (sigmas, chosen, noise, guider, sampler):
            merged |= part["inputs"] if part is not None else {}
        self._take_prompts(settings, merged)
        seed = merged.get("seed", merged.get("noise_seed"))
        settings.take("seed", self._value(seed, _NUMBERS), foreign.seed, "seed")
        settings.take("guidance_scale", self._value(merged.get("cfg"), _NUMBERS), foreign.number, "cfg")
        scheduler = self._value(merged.get("scheduler"), _TEXTS)
        kind = scheduler if isinstance(scheduler, str) else ""
        if scheduler is not None and kind not in _SPACINGS:
            settings.leave_out("scheduler", f"{scheduler!r:.40}")
        if kind in _NEARLY:
            settings.leave_out(f"scheduler {kind}, of which {_SPACINGS[kind]} is the nearest")
        name = self._value(merged.get("sampler_name"), _TEXTS)
        settings.take_sampler(name, _SPACINGS.get(kind))
        settings.model = self._model(merged)
        settings.take("num_steps", self._value(merged.get("steps"), _NUMBERS), foreign.steps, "steps")
        refiner = self._take_refiner(settings, sampler, merged)
        self._take_steps(settings, merged)
        self._take_latents(settings, merged)
        settings.take_sizes(*(self._sizes(merged.get(end)) for end in ("positive", "negative")))
        taken = [*self._take_loras(settings, merged), *self._take_controls(settings, merged)]
        for node in self._nodes.values():
            if any(node is one for one in taken):
                continue
            if node["class_type"] not in _KNOWN and not node["class_type"].startswith("Primitive"):
                named = (value for value in node["inputs"].values() if isinstance(value, str))
                settings.leave_out(node["class_type"], next(named, None))
            elif node["class_type"] in _SAMPLERS and node is not sampler and node is not refiner:
                settings.leave_out(f"a further pass ({node['class_type']})")
        return settings

    def _take_prompts(self, settings: ForeignSettings, inputs: Mapping[str, Any]) -> None:
        for name, ends in (("prompt", ("positive", "conditioning")), ("negative_prompt", ("negative",))):
            link = next((inputs[end] for end in ends if end in inputs), None)
            nearest = self._linked(link)
            if name == "negative_prompt" and nearest is not None and nearest["class_type"] == "ConditioningZeroOut":
                continue  # as without a negative prompt
            encoders = [*self._encoders(link)]
            texts = [
                self._value(next((node["inputs"][key] for key in _TEXTS if key in node["inputs"]), None), _TEXTS)
                for node in encoders
            ]
            known = [text for text in texts if isinstance(text, str)]
            if known:
                settings.arguments[name] = known[0]
            elif link is not None:
                settings.leave_out(f"{name}: no text leads to it")
            second = self._value(encoders[0]["inputs"].get("text_l"), _TEXTS) if encoders else None
            if isinstance(second, str) and known and second != known[0]:
                settings.leave_out("text_l, as both text encoders read one text here", second)
            if len(known) > 1:
                settings.leave_out(f"{len(known) - 1} more texts of the {name.replace('_', ' ')}")
            for node in self._upstream(link) if name == "prompt" else ():
                if node["class_type"] == "CLIPSetLastLayer" and "clip_skip" not in settings.arguments:
                    last = self._value(node["inputs"].get("stop_at_clip_layer"), _NUMBERS)
                    skipped = -1 - last if type(last) is int else last
                    # Of an SDXL the last layer but one is the usual one.
                    settings.sdxl_clip_skip = -1 if skipped == 0 else (foreign.clip_skip(skipped) or 1) - 1
                    settings.take("clip_skip", skipped or None, foreign.clip_skip, "stop_at_clip_layer")
        self._take_syntax(settings)

    def _take_syntax(self, settings: ForeignSettings) -> None:
        """Weights and embeddings of the prompts."""
        names = ("prompt", "negative_prompt")
        texts: dict[str, Any] = {name: settings.arguments[name] for name in names if name in settings.arguments}
        for name, text in texts.items():
            texts[name], named = prompt_texts.embeddings_of_comfyui(text)
            settings.embeddings += (each for each in named if each not in settings.embeddings)
        if any(map(prompt_texts.is_weighted, texts.values())):
            settings.arguments |= {name: prompt_texts.comfyui_as_a1111(text) for name, text in texts.items()}
            settings.take_syntax(prompt_syntax="a1111", emphasis="no_norm")
            settings.leave_out("how words are weighted, of which emphasis no_norm is the nearest")
        else:
            settings.arguments |= texts

    def _take_loras(self, settings: ForeignSettings, inputs: Mapping[str, Any]) -> list[Node]:
        """The LoRAs on the way from the model to the sampler, the first one first; returns their nodes."""
        taken = [node for node in self._upstream(inputs.get("model")) if node["class_type"] in _LORAS]
        of_text = list(self._upstream(inputs.get("positive", inputs.get("conditioning"))))
        for node in reversed(taken):
            values = node["inputs"]
            file = self._value(values.get("lora_name"), _TEXTS)
            scale = foreign.number(self._value(values.get("strength_model", 1), _NUMBERS))
            text_scale = foreign.number(self._value(values.get("strength_clip", 0), _NUMBERS))
            if not any(node is other for other in of_text):
                text_scale = 0.0
            if not isinstance(file, str) or scale is None or text_scale is None:
                settings.leave_out(node["class_type"], f"{file!r:.40}")
            else:
                settings.loras.append(Lora(prompt_texts.stem(file), scale, text_scale))
        return taken

    def _take_controls(self, settings: ForeignSettings, inputs: Mapping[str, Any]) -> list[Node]:
        """The networks that the conditioning goes through, the first one first; returns their nodes and the hints'."""
        link = inputs.get("positive", inputs.get("conditioning"))
        applied = [node for node in self._upstream(link) if node["class_type"] in _CONTROLS]
        taken = []
        for node in reversed(applied):
            values = node["inputs"]
            loader = self._linked(values.get("control_net"))
            file = None if loader is None else self._value(loader["inputs"].get("control_net_name"), _TEXTS)
            if loader is None or loader["class_type"] not in _CONTROL_LOADERS or not isinstance(file, str):
                continue  # its nodes are listed
            ends = [
                self._value(values.get(name, usual), _NUMBERS)
                for name, usual in (("start_percent", 0), ("end_percent", 1))
            ]
            scale = self._value(values.get("strength", 1), _NUMBERS)
            stem = prompt_texts.stem(file)
            if settings.take_control(stem, False, scale, (ends[0], ends[1]), "balanced", node["class_type"]):
                if [*map(foreign.number, ends)] != [0, 1]:
                    settings.leave_out("start_percent and end_percent count noise levels there, and steps here")
                settings.resize = "cover"
            taken += [node, loader, *self._upstream(values.get("image"))]
        return taken

    def _take_steps(self, settings: ForeignSettings, inputs: Mapping[str, Any]) -> None:
        denoise = self._value(inputs.get("denoise"), _NUMBERS)
        share, count = foreign.share(1 if denoise is None else denoise), settings.arguments.get("num_steps")
        if not share or count is None:
            if denoise is not None:
                settings.leave_out("denoise", f"{denoise!r:.20}")
        elif share < 1 and self._picture(inputs):
            # There so many steps are done; here they are the last ones of more.
            whole = max(count, int(count / share))
            settings.arguments |= {"num_steps": whole, "strength": min(1.0, (count + 1e-6) / whole)}
        elif share < 1:
            settings.leave_out("denoise", share)
        for name, neutral in (("start_at_step", 0), ("end_at_step", None), ("add_noise", "enable")):
            value = inputs.get(name)
            is_end = name == "end_at_step" and isinstance(value, int)
            ends = is_end and ("denoising_end" in settings.arguments or (count is not None and value >= count))
            if value not in (None, neutral) and not ends:
                settings.leave_out(name, f"{value!r:.20}")

    def _take_refiner(self, settings: ForeignSettings, sampler: Node, inputs: Mapping[str, Any]) -> Node | None:
        """Where the first sampler ends before its last step; returns the one of another model that then goes on."""
        after = [
            node
            for node in self._nodes.values()
            if node["class_type"] in _SAMPLERS and self._linked(node["inputs"].get("latent_image")) is sampler
        ]
        end, count = self._value(inputs.get("end_at_step"), _NUMBERS), settings.arguments.get("num_steps")
        if type(end) is not int or count is None or not 0 < end < count:
            return None
        if after:
            refines, model = after[0]["inputs"], self._model(after[0]["inputs"])
            if model in (None, settings.model) or refines.get("add_noise") != "disable":
                return None
            settings.refiner = model
            self._compare_refiner(settings, inputs, refines)
        settings.arguments["denoising_end"] = foreign.passed(settings.arguments, end)
        return after[0] if after else None

    def _compare_refiner(
        self, settings: ForeignSettings, inputs: Mapping[str, Any], refines: Mapping[str, Any]
    ) -> None:
        """Takes over the scores that the refiner reads, and lists what it does not share with the model before it."""
        for name in ("steps", "cfg", "sampler_name", "scheduler"):
            theirs, ours = (self._value(one.get(name), (*_NUMBERS, *_TEXTS)) for one in (refines, inputs))
            if theirs != ours:
                settings.leave_out(f"the refiner's {name}", f"{theirs!r:.40}")
        if refines.get("start_at_step") != inputs.get("end_at_step"):
            settings.leave_out("the refiner's start_at_step", f"{refines.get('start_at_step')!r:.20}")
        for end, prompt, score in (
            ("positive", "prompt", "aesthetic_score"),
            ("negative", "negative_prompt", "negative_aesthetic_score"),
        ):
            encoder = next(self._encoders(refines.get(end)), None)
            if encoder is None:
                continue
            text = self._value(encoder["inputs"].get("text"), _TEXTS)
            if text != settings.arguments.get(prompt):
                settings.leave_out(f"the refiner's {end} text", f"{text!r:.60}")
            found = self._value(encoder["inputs"].get("ascore"), _NUMBERS)
            settings.take(score, found, foreign.score, f"the refiner's {end} ascore")

    def _sizes(self, link: Any) -> dict[str, tuple[Any, Any]]:
        """What a text's node says of sizes, pairs of height and width or of top and left."""
        for node in self._encoders(link):
            if node["class_type"] == "CLIPTextEncodeSDXL":
                return {
                    name: tuple(self._value(node["inputs"].get(side), _NUMBERS) for side in sides)
                    for name, sides in _SIZES.items()
                }
        return {}

    def _encoders(self, link: Any) -> Iterator[Node]:
        return (node for node in self._upstream(link) if node["class_type"].startswith("CLIPTextEncode"))

    def _model(self, inputs: Mapping[str, Any]) -> str | None:
        """The nearest file that a sampler's model comes from."""
        for node in self._upstream(inputs.get("model")):
            name = node["inputs"].get("ckpt_name", node["inputs"].get("unet_name"))
            if isinstance(name, str):
                return name
        return None

    def _take_latents(self, settings: ForeignSettings, inputs: Mapping[str, Any]) -> None:
        settings.from_picture = self._picture(inputs)
        for node in self._upstream(inputs.get("latent_image")):
            sides = node["inputs"]
            if node["class_type"].startswith("Empty") and "Latent" in node["class_type"]:
                settings.take_size(*(self._value(sides.get(name), _NUMBERS) for name in ("width", "height")))
                count = self._value(sides.get("batch_size"), _NUMBERS)
                if count not in (None, 1):
                    settings.leave_out(f"a batch of {count!r:.20}, of which the first image has this seed")
            elif node["class_type"] in ("VAEEncodeForInpaint", "SetLatentNoiseMask"):
                settings.leave_out("the mask")

    def _picture(self, inputs: Mapping[str, Any]) -> bool:
        return any(node["class_type"].startswith("VAEEncode") for node in self._upstream(inputs.get("latent_image")))

    def _first_sampler(self) -> Node | None:
        """The sampler that no other one comes before."""
        samplers = [node for node in self._nodes.values() if node["class_type"] in _SAMPLERS]
        for node in samplers[:_MOST_SAMPLERS]:
            before = self._upstream(node["inputs"].get("latent_image"))
            if not any(other["class_type"] in _SAMPLERS for other in before):
                return node
        return samplers[0] if samplers else None

    def _linked(self, value: Any) -> Node | None:
        """The node that an input is linked to; a link is [name, number of its output]."""
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int):
            return self._nodes.get(str(value[0]))
        return None

    def _upstream(self, value: Any) -> Iterator[Node]:
        """All nodes that an input depends on, the nearest first."""
        waiting, seen = [value], set[int]()
        while waiting:
            link = waiting.pop(0)
            node = self._linked(link)
            if node is None or id(node) in seen:
                continue
            seen.add(id(node))
            yield node
            # Both conditionings go through some nodes, each by itself.
            both = node["class_type"] in _CONTROLS and type(link[1]) is int and link[1] in (0, 1)
            other = ("negative", "positive")[link[1]] if both else None
            waiting += [link for name, link in node["inputs"].items() if name != other]

    def _value(self, value: Any, names: tuple[str, ...]) -> Any:
        """An input's value, which may be in a node that it is linked to."""
        for node in self._upstream(value) if self._linked(value) is not None else ():
            for name in names:
                found = node["inputs"].get(name)
                if isinstance(found, str | int | float):
                    return found
        return value
