"""Flags that all trainings of parts of the embedded model have."""

from absl import flags

FOLDER = flags.DEFINE_string("folder", "runs", "Folder of checkpoints and logs.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of data, initial weights and batches.", lower_bound=0)
SHORTEN = flags.DEFINE_float("shorten", 1.0, "Factor on the number of steps, for a trial run.", lower_bound=0.0)
OUTPUT = flags.DEFINE_string("output", None, "Folder to which files are written, the package's own if not given.")
