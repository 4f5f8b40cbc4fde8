"""One line about the licence of weights from the hub, the first time that a machine uses them."""

import functools
import logging

from kerasdiff.runtime import cache_dir

_LOG = logging.getLogger("kerasdiff")
_KNOWN = {
    "sd-v1-4": "CreativeML OpenRAIL-M",
    **dict.fromkeys(
        (
            "sd-v2-1",
            "stabilityai/stable-diffusion-xl-base-1.0",
            "stabilityai/stable-diffusion-xl-refiner-1.0",
        ),
        "CreativeML Open RAIL++-M",
    ),
}


@functools.cache  # Where no marker can be written, the line comes once a process.
def give_notice(model: str, repository: str) -> None:
    """Logs the licence of a preset's or repository's weights, once per model and machine.

    A logged warning is seen by default and, unlike one of `warnings`, never becomes an error.
    """
    if not cache_dir.leave_marker(f"licences/{model.replace('/', '--')}"):
        return
    from huggingface_hub import constants

    licence = _KNOWN.get(model) or _stated(repository)
    terms = "have a licence of their own" if licence is None else f"are under the licence {licence}"
    _LOG.warning("the weights of %s %s: see %s/%s", model, terms, constants.ENDPOINT, repository)


def _stated(repository: str) -> str | None:
    """The licence that a repository's page states; None if there is none, or no network to ask."""
    import huggingface_hub

    try:
        card = huggingface_hub.model_info(repository, timeout=huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT).card_data
        licence = card.get("license_name") or card.get("license") if card is not None else None
    except Exception:  # whatever the library's transport raises, which differs by version
        return None
    return f"{licence!r:.80}" if licence else None
