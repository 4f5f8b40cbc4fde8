"""Batch jobs on many machines, through Ray Data; `python -m kerasdiff.bulk` is its command line."""

from kerasdiff.batch.progress import Summary
from kerasdiff.batch.ray.driver import run
from kerasdiff.batch.ray.map_batches import Generate

__all__ = ["Generate", "Summary", "run"]

if __name__ == "__main__":
    from kerasdiff.cli.bulk_command import PROGRAM, main

    PROGRAM.run(main)
