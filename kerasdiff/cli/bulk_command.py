"""python -m kerasdiff.bulk: a file of prompts becomes a folder of pictures, drawn by the workers of a cluster."""

from __future__ import annotations

import dataclasses
import os

from kerasdiff.batch.local import CannotWriteError
from kerasdiff.cli import bulk_options
from kerasdiff.cli.batch_command import tell_summary
from kerasdiff.cli.bulk_options import PROGRAM
from kerasdiff.cli.program import complain, tell_json
from kerasdiff.errors import RequestError


def main(arguments: list[str]) -> int:
    """Does what the flags say.

    Returns:
        0 if all images are there then, 1 if not, 130 or 143 if it was ended.

    Raises:
        KerasdiffError: it cannot be done.
    """
    # What draws is imported here: --help does not wait for it.
    from kerasdiff.batch.ray.driver import run
    from kerasdiff.cli import arguments as asked
    from kerasdiff.cli.options import MODEL, PRECISION

    if arguments:
        raise RequestError(f"prompts come from the file of --prompts; usage: {PROGRAM.usage}")
    prompts, output = bulk_options.PROMPTS.value, bulk_options.OUTPUT.value
    if prompts is None or output is None:
        missing = "prompts" if prompts is None else "output"
        raise RequestError(f"--{missing} is missing; usage: {PROGRAM.usage}")
    # Or what still waits for the cluster when that is left begins another.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    PROGRAM.ending.wait()
    try:
        with PROGRAM.starting():
            summary = run(
                prompts,
                output,
                model=MODEL.value,
                precision=PRECISION.value,
                jit_compile=asked.jit_compile(),
                batch_size=bulk_options.BATCH_SIZE.value,
                format=bulk_options.FORMAT.value,
                shards=bulk_options.SHARDS.value,
                shard_images=bulk_options.SHARD_IMAGES.value,
                workers=bulk_options.WORKERS.value,
                threads=bulk_options.THREADS.value,
                ray_address=bulk_options.RAY_ADDRESS.value,
                progress=PROGRAM.progress,
                between=PROGRAM.ending.check,
                **asked.source(),
                **asked.arguments(),
            )
    except CannotWriteError as error:
        complain(f"{PROGRAM.name}: {error}; the same command goes on when that is mended")
        return 1
    except KeyboardInterrupt:
        complain(f"{PROGRAM.name}: interrupted; what is finished is in {output}, and the same command goes on")
        return PROGRAM.ending.exit_code
    if PROGRAM.json:
        tell_json({"type": "summary", "output": output, **dataclasses.asdict(summary)})
    else:
        tell_summary(output, summary, f"{summary.workers} worker{'' if summary.workers == 1 else 's'}, ")
    if summary.failed:
        complain(
            f"{PROGRAM.name}: {summary.failed} images failed; {output}/manifest says why, and the same command tries "
            "them again"
        )
        return 1
    return 0


if __name__ == "__main__":
    PROGRAM.run(main)
