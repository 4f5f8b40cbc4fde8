"""The flags of python -m kerasdiff.bulk, in the groups in which --help shows them."""

from __future__ import annotations

from absl import flags

from kerasdiff.cli import options
from kerasdiff.cli.program import Part, Program, printed_flags

_SHARED = options.PROGRAM.groups

_JOB = flags.FlagValues()
PROMPTS = flags.DEFINE_string("prompts", None, "<FILE>: Rows, .csv, .jsonl, .parquet or .txt.", flag_values=_JOB)
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "<FOLDER>: Where images and the manifest go: a folder that all machines see, or a bucket, such as "
    "s3://bucket/folder. The same command goes on where it was ended.",
    flag_values=_JOB,
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Images for each row.", flag_values=_JOB)
FORMAT = flags.DEFINE_enum("format", "png", ["png", "jpg", "webp"], "Of the images.", flag_values=_JOB)
SHARDS = flags.DEFINE_bool("shards", False, "Put images into tar files, in WebDataset's layout.", flag_values=_JOB)
SHARD_IMAGES = flags.DEFINE_integer("shard_images", 1000, "Images in a tar file, about.", flag_values=_JOB)

_WORKERS = flags.FlagValues()
WORKERS = flags.DEFINE_integer(
    "workers",
    None,
    "Processes that draw; if not given, one for each GPU, or one for each machine if there are none.",
    flag_values=_WORKERS,
)
THREADS = flags.DEFINE_integer(
    "threads", None, "Of each worker on a CPU; if not given, cores are shared out.", flag_values=_WORKERS
)
RAY_ADDRESS = flags.DEFINE_string(
    "ray_address",
    None,
    "<HOST:PORT>: A cluster of Ray's; if not given, RAY_ADDRESS, else Ray is started on this machine.",
    flag_values=_WORKERS,
)

PROGRAM = Program(
    name="kerasdiff.bulk",
    about="draws a file of prompts on many machines, with Ray: the same pictures that one machine would draw.",
    usage="python -m kerasdiff.bulk --prompts=FILE --output=FOLDER [--flag=value ...]",
    examples="""\
python -m kerasdiff.bulk --prompts=rows.csv --output=pictures --workers=2
python -m kerasdiff.bulk --prompts=rows.parquet --output=s3://bucket/pictures --model=sd-v1-4 \\
  --ray_address=10.0.0.1:6379 --shards --num_steps=25""",
    groups={
        "the job": _JOB,
        "the machines": _WORKERS,
        "for rows that do not say otherwise": _SHARED["what to draw"],
        "size and steps": _SHARED["size and steps"],
        "guidance": _SHARED["guidance"],
        "samplers": Part(_SHARED["samplers"], "list_samplers"),
        "from a picture": _SHARED["from a picture"],
        "noise and exactness": Part(_SHARED["seeds and exactness"], "seed", "replay"),
        "model": _SHARED["model"],
        "how it runs": _SHARED["how it runs"],
        "what is printed": printed_flags("Print a line of JSON at the end.", progress=True),
    },
    status_1="images are missing, or stdout cannot be written to",
)
