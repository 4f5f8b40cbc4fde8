"""A file of prompts becomes a folder of images; an interrupted job resumes."""

from kerasdiff.batch.local import run
from kerasdiff.batch.progress import Summary
from kerasdiff.batch.row_files import read_rows
from kerasdiff.batch.rows import Row, number_prompts
from kerasdiff.batch.storage import CannotWriteError

__all__ = ["CannotWriteError", "Row", "Summary", "number_prompts", "read_rows", "run"]
