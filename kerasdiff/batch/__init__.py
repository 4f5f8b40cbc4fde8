"""A file of prompts becomes a folder of pictures, and goes on where it was interrupted."""

from kerasdiff.batch.local import CannotWriteError, Summary, run
from kerasdiff.batch.rows import Row, number_prompts, read_rows

__all__ = ["CannotWriteError", "Row", "Summary", "number_prompts", "read_rows", "run"]
