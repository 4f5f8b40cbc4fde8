"""Requests to the hub: they end in bounded time, and what goes wrong is one line.

By itself, huggingface_hub waits without end for a hub that does not answer, sleeps for as long as a hub asks it to, and
loads a file again and again from its beginning where a proxy always cuts it off.
"""

import collections
import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kerasdiff.errors import ModelError
from kerasdiff.runtime.platform_info import version

WAY_OUT, ADAPTER_WAY_OUT = "model='tiny' needs no download", "a path to a file needs no download"
AUTOENCODER_WAY_OUT = "a path as vae needs no download"
_LONGEST_SLEEP = 60  # seconds
_MOST_STARTS = 6  # of one file, as many as huggingface_hub tries when nothing comes


def check_library(way_out: str = WAY_OUT) -> None:
    """Raises ModelError if huggingface_hub is missing, or older than its rewrite."""
    found = version("huggingface_hub")
    if found is None or int(found.partition(".")[0]) < 1:
        reason = "it is not installed" if found is None else f"this is {found}"
        raise ModelError(
            f"models of the Hugging Face hub need huggingface_hub 1.0 or newer, and {reason}: "
            f"pip install 'kerasdiff[hub]'; {way_out}"
        )


@contextlib.contextmanager
def bounded_requests(
    repository: str, file: str | None, revision: str | None = None, way_out: str = WAY_OUT
) -> Iterator[None]:
    """Bounds what huggingface_hub does while it is open, and makes one ModelError of whatever it raises."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    try:
        with _bounded():
            yield
            return
    except errors.GatedRepoError:
        reason = f"{repository} is gated: accept its licence at {hub}/{repository} and log in (or set HF_TOKEN)"
    except errors.RevisionNotFoundError:
        reason = f"{repository} has no revision {revision!r} at {hub}"
    except errors.RepositoryNotFoundError:
        reason = f"there is no {repository} at {hub}, or it is private and needs a login (or HF_TOKEN)"
    except Exception as error:  # whatever the library's transport raises, which differs by version
        if file is not None and isinstance(error, errors.RemoteEntryNotFoundError):
            reason = f"{repository} has no file {file} at {hub}"
        else:
            model = repository if file is None else f"{repository}/{file}"
            reason = (
                f"{model} is not complete in the cache ({constants.HF_HUB_CACHE}) and cannot be downloaded from {hub}: "
                f"{_cause(error)}"
            )
    raise ModelError(f"{reason}; {way_out}") from None


def _cause(error: BaseException) -> str:
    from huggingface_hub import errors

    # "An error happened" hides the cause; only a list of the files that are missing says more than it.
    if isinstance(error, errors.LocalEntryNotFoundError) and not hasattr(error, "snapshot_path"):
        error = error.__cause__ or error
    text = " ".join(str(error).split()).partition(" For more information")[0]
    return f"{type(error).__name__}: {text[:300]}"


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    from huggingface_hub import constants, errors, get_session

    longest = max(constants.HF_HUB_DOWNLOAD_TIMEOUT, constants.HF_HUB_ETAG_TIMEOUT)
    starts: collections.Counter[str] = collections.Counter()

    def limit(request: Any) -> None:
        timeouts = request.extensions["timeout"]
        request.extensions["timeout"] = {step: min(seconds or longest, longest) for step, seconds in timeouts.items()}

    # The library takes its own error for an answer of the hub: it looks in the cache, and does not ask again.
    def judge(response: Any) -> None:
        sleep = _sleep(response.headers) if response.status_code == 429 else 0
        if sleep > _LONGEST_SLEEP:
            raise errors.HfHubHTTPError(f"too many requests; the hub asks to wait {sleep} s", response=response)
        url = str(response.request.url)
        starts[url] += response.request.method == "GET" and response.status_code == 200
        if starts[url] > _MOST_STARTS:
            raise errors.HfHubHTTPError(f"{url} broke off {_MOST_STARTS} times", response=response)

    hooks = get_session().event_hooks
    hooks["request"].append(limit)
    hooks["response"].append(judge)
    try:
        yield
    finally:
        hooks["request"].remove(limit)
        hooks["response"].remove(judge)


def _sleep(headers: Mapping[str, str]) -> int:
    """The seconds that a hub wants no request for: `Retry-After: 55`, or `RateLimit: "api";r=0;t=55`."""
    stated = [headers.get("retry-after", ""), *re.findall(r"r=0;t=(\d+)", headers.get("ratelimit", ""))]
    return max((int(seconds) for seconds in stated if seconds.isdigit()), default=0)
