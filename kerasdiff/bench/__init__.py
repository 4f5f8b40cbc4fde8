"""Measuring: what every result file says about the machine and the versions it came from."""
