"""The version of the package, and nothing else: whoever needs it imports nothing with it."""

__version__ = "0.1.0"
