"""Embedded metadata: how a saved image was generated."""

from kerasdiff.metadata.a1111 import parameters_text
from kerasdiff.metadata.embedded import read, read_any, read_bytes, save_arguments, upscaled_arguments
from kerasdiff.metadata.foreign import ForeignSettings
from kerasdiff.metadata.provenance import Provenance
from kerasdiff.metadata.receipt import ARRAYS, Receipt, differences

__all__ = [
    "ARRAYS",
    "ForeignSettings",
    "Provenance",
    "Receipt",
    "differences",
    "parameters_text",
    "read",
    "read_any",
    "read_bytes",
    "save_arguments",
    "upscaled_arguments",
]
