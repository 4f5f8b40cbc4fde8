"""Many prompts on many machines: rows, through Ray Data, to a folder or a bucket of pictures."""

from kerasdiff.bulk.generate import Generate
from kerasdiff.bulk.running import Summary, run

__all__ = ["Generate", "Summary", "run"]
