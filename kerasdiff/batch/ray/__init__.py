"""Batch jobs on many machines, through Ray Data; `kerasdiff.bulk` is the public face."""
