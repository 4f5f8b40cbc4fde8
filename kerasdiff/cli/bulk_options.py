"""The program bulk and its options."""

from kerasdiff.cli import options
from kerasdiff.cli.program import Option, Program, output_options

_JOB = (
    Option("string", "prompts", None, "Rows, .csv, .jsonl, .parquet or .txt.", "FILE"),
    Option(
        "string",
        "output",
        None,
        "Output of images and manifest: a folder that all machines see, or a bucket, such as s3://bucket/folder. Rerun "
        "the same command to resume.",
        "FOLDER",
    ),
    Option("integer", "batch_size", 1, "Images per row."),
    Option("choice", "format", "png", "Image format.", choices=options.FORMATS),
    Option("switch", "shards", False, "Write images into tar shards, in WebDataset's layout."),
    Option("integer", "shard_images", 1000, "Approximate number of images per tar shard."),
)
_WORKERS = (
    Option("integer", "workers", None, "Worker processes. Default: one per GPU, or one per machine without GPUs."),
    Option("integer", "threads", None, "Threads per CPU worker. Default: an even share of the cores."),
    Option(
        "string",
        "ray_address",
        None,
        "Address of a Ray cluster. Default: RAY_ADDRESS; without it, Ray is started on this machine.",
        "HOST:PORT",
    ),
)
PROGRAM = Program(
    name="kerasdiff.bulk",
    about="generates images from a file of prompts on many machines, with Ray; the same images that one machine would "
    "generate.",
    usage="python -m kerasdiff.bulk --prompts=FILE --output=FOLDER [--flag=value]",
    examples="""\
python -m kerasdiff.bulk --prompts=rows.csv --output=pictures --workers=2
python -m kerasdiff.bulk --prompts=rows.parquet --output=s3://bucket/images \\
  --model=sd-v1-4 --ray_address=10.0.0.1:6379 --shards --num_steps=25""",
    groups={
        "job": _JOB,
        "machines": _WORKERS,
        "defaults for rows": options.PROMPTS,
        "adapters": options.ADAPTERS,
        "size and steps": options.STEPS,
        "what SDXL is told of sizes": options.SIZES,
        "guidance": options.GUIDANCE,
        "samplers": options.SAMPLERS,
        "image to image": options.IMAGES,
        "control": options.CONTROLS,
        "refiner": options.REFINER,
        "approximations": options.SHORTCUTS,
        "seeds and exactness": (options.SEED, *options.options("rng", "exact")),
        "model": options.MODEL,
        "execution": options.EXECUTION,
        "output": output_options("Print a line of JSON at the end.", progress=True),
    },
    status_1="images are missing, or stdout cannot be written to",
)
