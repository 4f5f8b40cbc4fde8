"""Many prompts on many machines: rows, through Ray Data, to a folder or a bucket of pictures."""

from kerasdiff.batch.ray.driver import Summary, run
from kerasdiff.batch.ray.map_batches import Generate

__all__ = ["Generate", "Summary", "run"]
