"""One call that does it all: `kerasdiff.generate`."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

from kerasdiff.engine.precision import check
from kerasdiff.generator import Generator
from kerasdiff.request import make_request
from kerasdiff.result import Result
from kerasdiff.weights.presets import open_model

# Arguments of `Generator.generate` that are not part of a request.
_BESIDE = ("latents", "prompt_embeds", "negative_prompt_embeds", "callback")


@functools.lru_cache(maxsize=1)
def _generator(model: str, **arguments: Any) -> Generator:
    return Generator(model, **arguments)


def generate(
    prompt: str | Sequence[str] | None = None,
    batch_size: int = 1,
    *,
    model: Any = "tiny",
    weights: str = "pretrained",
    revision: str | None = None,
    variant: str | None = None,
    precision: str = "auto",
    jit_compile: bool | str = "auto",
    progress: bool = True,
    **arguments: Any,
) -> Result:
    """Draws `batch_size` images for each prompt, in one call.

    The model of the last call is kept, so that a second call with the same one starts at once. A
    live KerasCV model is read anew each time: hold a `Generator` to draw from it repeatedly.

    Args:
        prompt: a text or a list of texts.
        batch_size: images for each prompt.
        model: "tiny", a name, a path or a KerasCV model, as in `Generator`.
        weights: as in `Generator`.
        revision: as in `Generator`.
        variant: as in `Generator`.
        precision: as in `Generator`.
        jit_compile: as in `Generator`.
        progress: whether to show a progress bar on stderr.
        **arguments: as in `Generator.generate`.

    Returns:
        All images; after Ctrl-C those that are finished.

    Raises:
        RequestError: an argument is wrong.
        ModelError: no such model, or its weights cannot be had.
        NonFiniteError: as in `Generator.generate`.
        OutOfMemoryError: as in `Generator.generate`.

    Example:
        ```python
        result = kerasdiff.generate("a red circle above a blue square on a yellow background", batch_size=3)
        result.save("out.png")  # out_1.png, out_2.png, out_3.png
        ```
    """
    check(precision, jit_compile)
    source: dict[str, Any] = {"weights": weights, "revision": revision, "variant": variant}
    beside = {name: arguments.pop(name) for name in _BESIDE if name in arguments}
    request, config = None, open_model(model, **source).config
    if prompt is not None:
        # Arguments are checked before anything large is built.
        request = make_request(config, prompt, batch_size=batch_size, **arguments)
    make = _generator if isinstance(model, str | os.PathLike) else _generator.__wrapped__
    generator = make(model, **source, precision=precision, jit_compile=jit_compile)
    if request is not None and not beside.keys() - {"callback"}:
        return generator.run(request, progress=progress, **beside)
    return generator.generate(prompt, batch_size, progress=progress, **beside, **arguments)
