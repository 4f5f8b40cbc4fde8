"""What a saved picture says about how it was made."""

from kerasdiff.receipts.files import read, read_bytes, save_arguments
from kerasdiff.receipts.infotext import parameters_text
from kerasdiff.receipts.origin import Origin
from kerasdiff.receipts.receipt import ARRAYS, Receipt, differences

__all__ = ["ARRAYS", "Origin", "Receipt", "differences", "parameters_text", "read", "read_bytes", "save_arguments"]
