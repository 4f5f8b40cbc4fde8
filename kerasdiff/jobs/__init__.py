"""A file of prompts becomes a folder of pictures, and goes on where it was interrupted."""

from kerasdiff.jobs.rows import Row, number_prompts, read_rows
from kerasdiff.jobs.work import CannotWriteError, Summary, run

__all__ = ["CannotWriteError", "Row", "Summary", "number_prompts", "read_rows", "run"]
