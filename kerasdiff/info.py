"""kerasdiff info: versions, devices, what is chosen automatically, what the caches hold, and what a file is."""

from __future__ import annotations

import os
import pathlib
import platform
import time
from collections.abc import Callable
from typing import Any

from kerasdiff.cli.console import print_json, print_line
from kerasdiff.cli.program import Option, Program, output_options
from kerasdiff.control_info import control_info, control_lines
from kerasdiff.errors import KerasdiffError
from kerasdiff.runtime import backend, cache_dir
from kerasdiff.runtime.platform_info import cpu_has_bfloat16, processor, version
from kerasdiff.runtime.precision import against_openvino, choose, choose_backend
from kerasdiff.runtime.tf_setup import import_tensorflow
from kerasdiff.samplers import RECIPES, SAMPLERS, recipes
from kerasdiff.validation import line

PROGRAM = Program(
    name="kerasdiff.info",
    about="reports versions, devices, what is chosen automatically and why, what the caches hold, and recipes, or "
    "what a model, a LoRA, an embedding, an autoencoder or a ControlNet is.",
    usage="python -m kerasdiff.info [--flag=value ...]",
    examples="""\
python -m kerasdiff.info
python -m kerasdiff.info --clear
python -m kerasdiff.info --embedding=toy.safetensors
python -m kerasdiff.info --model=org/name
python -m kerasdiff.info --lora=film_grain.safetensors --model=sd-v1-4
python -m kerasdiff.info --vae=vae-ft-mse-840000-ema-pruned.safetensors
python -m kerasdiff.info --control=lllyasviel/control_v11p_sd15_canny
KERASDIFF_BACKEND=tensorflow python -m kerasdiff.info --json""",
    groups={
        "caches": (Option("switch", "clear", False, "Empty the caches on disk."),),
        "adapters": (
            Option("string", "lora", None, "Report what a LoRA is, and nothing else.", "FILE"),
            Option("string", "model", None, "Report a model's defaults, or what of a LoRA fits it.", "NAME"),
            Option("string", "embedding", None, "Report what a file or folder of embeddings holds.", "FILE"),
            Option("string", "vae", None, "Report what an autoencoder is: a folder, a file, or org/name.", "VAE"),
            Option("string", "control", None, "Report what a ControlNet is: a folder, a file, or org/name.", "FILE"),
        ),
        "output": output_options("Print one JSON object instead of lines."),
    },
    positional=False,
    status_1="the backend does not compute, or stdout cannot be written to",
)
_PACKAGES = ("kerasdiff", "tensorflow", "keras", "keras-cv", "jax", "openvino", "numpy")
_CACHES = ("weights", "constants", "programs", "blobs", "batches", "xla", "jax")


def info() -> dict[str, Any]:
    """Versions, devices, choices and caches, as plain values; imports the backend and computes a little."""
    return _info(backend.of)


def _info(imported: Callable[[str], Any]) -> dict[str, Any]:
    name = choose_backend("auto")
    started = time.perf_counter()
    devices = imported(name).devices()
    import_s = time.perf_counter() - started
    return {
        "versions": {package: version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "backend": name,
        "reason": _backend_reason(name),
        "import_s": round(import_s, 2),
        "processor": processor(),
        "bfloat16 on the processor": cpu_has_bfloat16(),
        "gpus": devices,
        "computes": _computes(name, False),
        "computes with XLA": None if name == "openvino" else _computes(name, True),
        "auto": {
            f"{kind} model": str(choose("auto", "auto", large))
            for kind, large in (("large", True), ("embedded", False))
        },
        "recipes": {name: recipe.summary for name, recipe in RECIPES.items()},
        "cache": {"folder": str(cache_dir.folder()), **{kind: _size(kind) for kind in _CACHES}},
    }


def lora_info(lora: str, model: str | None = None) -> dict[str, Any]:
    """What a LoRA file is and what it was trained on, as plain values, and with `model` what of it that model uses.

    Args:
        lora: a file or folder, or "org/name" or "org/name/file.safetensors" on the Hugging Face hub.
        model: as in `kerasdiff.Generator`; without one nothing but the file is looked at.

    Raises:
        ModelError: the file is no LoRA, or not one for this model.
    """
    from kerasdiff.adapters.file_search import find_lora
    from kerasdiff.adapters.lora_file import read_lora

    opened = read_lora(find_lora(lora))
    found = {"file": str(opened.path), "sha256": opened.sha256, **opened.summary}
    if model is None:
        return found
    from kerasdiff.checkpoints.resolve import open_model
    from kerasdiff.models.networks import text_to_image

    checkpoint = open_model(model)
    shapes = {network: checkpoint.shapes(network) for network in text_to_image(checkpoint.config)}
    fit = opened.fit(shapes, checkpoint.config)
    return {**found, "model": checkpoint.name, "tensors": fit.tensors, "used": fit.used, "left over": fit.unused}


def model_info(model: str) -> dict[str, Any]:
    """What a model does where a request says nothing, as plain values; its weights are not read.

    Args:
        model: as in `kerasdiff.Generator`.

    Raises:
        ModelError: no such model.
    """
    from kerasdiff.checkpoints.resolve import open_model

    found = open_model(model)
    defaults = recipes.applied(found.config, found.config.defaults.recipe).defaults
    values = {name: getattr(defaults, name) for name in ("height", "width", "num_steps", "guidance_scale", "sampler")}
    spacing = SAMPLERS[defaults.sampler].spacing if defaults.spacing is None else defaults.spacing
    encoders = {
        name: {"layers": one.num_layers, "width": one.width} for name, one in found.config.text_encoders.items()
    }
    more = {"sampler_options": dict(defaults.sampler_options), "text_encoders": encoders}
    return {"model": found.name, "recipe": defaults.recipe, **values, "spacing": spacing, **more}


def model_lines(found: dict[str, Any]) -> list[str]:
    """What `model_info` gave, for people."""
    recipe = found["recipe"]
    options = "".join(f", {name}={value!r}" for name, value in found["sampler_options"].items())
    texts = (f"{name} ({one['layers']} layers, width {one['width']})" for name, one in found["text_encoders"].items())
    return [
        f"model    {line(found['model'], 1000)}",
        f"recipe   {'none by its files' if recipe is None else f'{recipe}: {RECIPES[recipe]}'}",
        f"size     {found['width']} x {found['height']}",
        f"steps    {found['num_steps']}, guidance {found['guidance_scale']:g}",
        f"sampler  {found['sampler']}{options}, spacing {found['spacing']}",
        f"texts    {', '.join(texts)}",
    ]


def lora_lines(found: dict[str, Any]) -> list[str]:
    """What `lora_info` gave, for people."""
    from kerasdiff.adapters.lora_metadata import FACTS

    size = [f"{found['layers']} layers"]
    for name, values in (("rank", found["ranks"]), ("alpha", found["alphas"])):
        if values:
            size.append(f"{name} {', '.join(f'{value:g}' for value in values)}")
    told = [f"{name} {found[name]}" for name in FACTS if name in found]
    report = [
        f"file     {line(found['file'], 1000)}",
        f"SHA-256  {found['sha256']}",
        f"kind     {found['kind']}, {', '.join(size)}",
        f"for      {found['family'] or 'a model that its shapes do not tell'}",
        f"trained  {'; '.join(told) or 'it does not say on what'}",
    ]
    if found["tags"]:
        report.append("tags     " + ", ".join(f"{tag} ({count})" for tag, count in found["tags"].items()))
    if "model" in found:
        report.append(f"fits     {found['model']} uses {found['used']} of its {found['tensors']} tensors")
    return report + ([f"         {found['left over']}"] if found.get("left over") else [])


def vae_info(vae: str, model: str | None = None) -> dict[str, Any]:
    """What an autoencoder is, as plain values.

    Args:
        vae: as in `kerasdiff.Generator`.
        model: the model that it is for; None is Stable Diffusion 1.x or 2.x.

    Raises:
        ModelError: it is no autoencoder, or not one for this model.
    """
    from kerasdiff.adapters.file_search import sha256
    from kerasdiff.checkpoints.resolve import open_model
    from kerasdiff.checkpoints.vae_files import open_vae
    from kerasdiff.models.config import SD_V1_VAE
    from kerasdiff.models.network_configs import TinyVAEConfig

    checkpoint = None if model is None else open_model(model)
    name, own = ("Stable Diffusion 1.x", SD_V1_VAE) if checkpoint is None else (checkpoint.name, checkpoint.latents_of)
    found = open_vae(vae, own, name)
    files = list(dict.fromkeys(file for half in found.halves for file in found.files(half)))
    config = found.config
    is_tiny = isinstance(config, TinyVAEConfig)
    return {
        "files": [str(file) for file in files],
        "sha256": sha256(files[0]),
        "kind": "AutoencoderTiny (TAESD)" if is_tiny else "AutoencoderKL",
        "halves": list(found.halves),
        "widths": [config.decoder_width] if isinstance(config, TinyVAEConfig) else list(config.widths),
        "latent channels": config.latent_channels,
        "pixels per latent": config.factor,
        "scaling factor": config.scaling_factor,
        "bytes": sum(file.stat().st_size for file in files),
        "for": name,
    }


def vae_lines(found: dict[str, Any]) -> list[str]:
    """What `vae_info` gave, for people."""
    widths = ", ".join(map(str, found["widths"]))
    return [
        *(f"file     {line(file, 1000)}" for file in found["files"]),
        f"SHA-256  {found['sha256']}",
        f"kind     {found['kind']}, {' and '.join(found['halves'])}, widths {widths}, {found['bytes'] / 1e6:.1f} MB",
        f"latents  {found['latent channels']} channels, one for {found['pixels per latent']} x "
        f"{found['pixels per latent']} pixels, scaling factor {found['scaling factor']:g}",
        f"for      {found['for']}",
    ]


def clear() -> None:
    """Empties the caches of weights in our layout and of traced and compiled programs; downloads of the hub stay."""
    import shutil

    for kind in _CACHES:
        shutil.rmtree(cache_dir.folder() / kind, ignore_errors=True)


def lines(found: dict[str, Any]) -> list[str]:
    """What `info` gave, for people, with what to do where something is wrong."""
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items() if version)
    report = [
        f"versions   {versions}, Python {found['python']}",
        f"backend    {found['backend']}, imported in {found['import_s']} s",
        f"           {found['reason']}",
        f"processor  {found['processor']}",
        f"GPU        {', '.join(found['gpus']) or 'none'}",
        f"computes   {found['computes']}" + (f"; with XLA: {xla}" if (xla := found["computes with XLA"]) else ""),
    ]
    report += [f"auto       {kind}: {choice}" for kind, choice in found["auto"].items()]
    if not found["gpus"]:
        report.append(f"           {_precision_reason(found)}")
        if found["backend"] == "tensorflow" and pathlib.Path("/proc/driver/nvidia").exists():
            report.append(
                "           there is an NVIDIA driver that TensorFlow does not use: pip install tensorflow[and-cuda]"
            )
    report.append(f"recipes    {', '.join(found['recipes'])} (--list_samplers of python -m kerasdiff describes them)")
    cache = found["cache"]
    report.append(f"cache      {cache['folder']}")
    report += [
        f"           {kind}: {cache[kind]['files']} files, {cache[kind]['bytes'] / 1e6:.1f} MB" for kind in _CACHES
    ]
    return report


def _backend_reason(name: str) -> str:
    """Why "auto" is this backend."""
    told = os.environ.get(backend.VARIABLE)
    if told == name:
        return f"{backend.VARIABLE}={told} says so"
    if name == "jax" or told in backend.OF_KERAS:
        return f"Keras is set to {name}, by KERAS_BACKEND or keras.json"
    if name == "tensorflow":
        return str(against_openvino())
    return "OpenVINO is installed, and there is no GPU's driver; TensorFlow has float16, XLA and live KerasCV models"


def _precision_reason(found: dict[str, Any]) -> str:
    """Why "auto" is this precision, and XLA or not, on a processor."""
    if found["backend"] == "jax":
        return "JAX always compiles with XLA, which computes in float32 on a processor"
    able = found["bfloat16 on the processor"]
    text = f"this processor {'multiplies' if able else 'does not multiply'} bfloat16"
    if found["backend"] == "openvino":
        return text
    return f"{text}, for which oneDNN is faster than XLA" if able else f"{text}; in float32 XLA is faster than oneDNN"


def _computes(name: str, jit_compile: bool) -> str:
    """Whether a small product comes out right: "yes", or "no" and why."""
    try:
        problem = None if abs(_product(name, jit_compile) - 24.0) < 1e-3 else "a wrong result"
    except Exception as error:  # whatever a broken installation raises
        problem = " ".join(str(error).split())[:200] or type(error).__name__
    return "yes" if problem is None else f"no ({problem})"


def _product(name: str, jit_compile: bool) -> float:
    product: Callable[[], Any]
    if name == "openvino":
        return backend.of(name).small_product()
    if name == "jax":
        import jax

        product = lambda: (jax.numpy.ones((2, 3)) @ jax.numpy.ones((3, 4))).sum()  # noqa: E731
        product = jax.jit(product) if jit_compile else product
    else:
        import tensorflow as tf

        product = tf.function(lambda: tf.reduce_sum(tf.ones((2, 3)) @ tf.ones((3, 4))), jit_compile=jit_compile)
    return float(product())


def _imported_alone(name: str) -> Any:
    """A backend without what it imports needlessly, for this process is ours."""
    if name == "tensorflow":
        import_tensorflow()
    return backend.of(name)


def _size(kind: str) -> dict[str, int]:
    files = [path.stat().st_size for path in (cache_dir.folder() / kind).rglob("*") if path.is_file()]
    return {"files": len(files), "bytes": sum(files)}


def _embeddings(file: str) -> dict[str, Any]:
    """The words of a file or folder, as plain values."""
    from kerasdiff.adapter_files import EmbeddingFile
    from kerasdiff.adapters.textual_inversion import read_embeddings

    return {
        "embeddings": [
            {
                "file": word.file,
                "sha256": word.sha256,
                "triggers": word.triggers,
                "vectors": word.vectors.shape[0],
                "width": word.width,
                "family": word.family,
                "steps": word.steps,
                "trained on": word.trained_on,
            }
            for word in read_embeddings(EmbeddingFile(file))
        ]
    }


def _embedding_lines(found: dict[str, Any]) -> list[str]:
    return [
        f"{' or '.join(word['triggers'])}: {word['vectors']} vectors of width {word['width']}, for "
        f"{word['family'] or 'an unknown model'}"
        + (f", trained for {word['steps']} steps" if word["steps"] is not None else "")
        + (f" on {word['trained on']}" if word["trained on"] else "")
        + f", in {word['file']}"
        for word in found["embeddings"]
    ]


def main(_: list[str]) -> int:
    """Prints; 0, or 1 if the backend does not compute."""
    values = PROGRAM.values
    if values.embedding is not None:
        told = _embeddings(values.embedding)
        print_json(told) if PROGRAM.json else print_line("\n".join(_embedding_lines(told)))
        return 0
    if values.lora is not None:
        with PROGRAM.starting():
            told = lora_info(values.lora, values.model)
        print_json(told) if PROGRAM.json else print_line("\n".join(lora_lines(told)))
        return 0
    if values.control is not None:
        with PROGRAM.starting():
            told = control_info(values.control, values.model)
        print_json(told) if PROGRAM.json else print_line("\n".join(control_lines(told)))
        return 0
    if values.vae is not None:
        with PROGRAM.starting():
            told = vae_info(values.vae, values.model)
        print_json(told) if PROGRAM.json else print_line("\n".join(vae_lines(told)))
        return 0
    if values.model is not None:
        with PROGRAM.starting():
            told = model_info(values.model)
        print_json(told) if PROGRAM.json else print_line("\n".join(model_lines(told)))
        return 0
    try:
        if values.clear:
            clear()
        with PROGRAM.starting():
            found = _info(_imported_alone)
    except RuntimeError:
        raise KerasdiffError("no home folder is known; set KERASDIFF_CACHE") from None
    if PROGRAM.json:
        print_json(found)
    else:
        print_line("\n".join(lines(found)))
    return 0 if found["computes"] == "yes" else 1


if __name__ == "__main__":
    PROGRAM.run(main)
