"""The flags of python -m kerasdiff, in the groups in which --help shows them."""

from __future__ import annotations

from absl import flags

from kerasdiff.cli.program import Program, printed_flags

_WHAT = flags.FlagValues()
NEGATIVE_PROMPT = flags.DEFINE_multi_string(
    "negative_prompt", None, "What to stay away from; given several times, one a prompt.", flag_values=_WHAT
)
LONG_PROMPTS = flags.DEFINE_string(
    "long_prompts",
    "cut",
    "<cut|chunk>: Whether what the text encoder cannot read at once is left out, or encoded part by part.",
    flag_values=_WHAT,
)
SAFETY = flags.DEFINE_enum(
    "safety",
    None,
    ["on", "flag", "off"],
    "The safety filter: flagged images are black, are only told, or it does not run. On if the model has one.",
    flag_values=_WHAT,
)

_SIZE = flags.FlagValues()
HEIGHT = flags.DEFINE_integer("height", None, "Pixels; the model's own height if not given.", flag_values=_SIZE)
WIDTH = flags.DEFINE_integer("width", None, "Pixels; the model's own width if not given.", flag_values=_SIZE)
NUM_STEPS = flags.DEFINE_integer(
    "num_steps", None, "Steps of the sampler; the model's own number if not given.", flag_values=_SIZE
)

_GUIDANCE = flags.FlagValues()
GUIDANCE_SCALE = flags.DEFINE_multi_string(
    "guidance_scale",
    None,
    "<X[,X...]>: Weight of the prompt: one number, one a step, or one an image; given several times, one or all steps' "
    "of each image. 1 switches guidance off. The model's own if not given.",
    flag_values=_GUIDANCE,
)
GUIDANCE_INTERVAL = flags.DEFINE_list(
    "guidance_interval",
    ["0", "1"],
    "<START,END>: Shares of the run between which guidance is on.",
    flag_values=_GUIDANCE,
)
GUIDANCE_RESCALE = flags.DEFINE_float(
    "guidance_rescale",
    0.0,
    "0 to 1: how far guided predictions are scaled back to the deviation of unguided ones.",
    flag_values=_GUIDANCE,
)

_SAMPLERS = flags.FlagValues()
SAMPLER = flags.DEFINE_string(
    "sampler",
    None,
    "<NAME>: One from --list_samplers, or a class of diffusers; the model's own if not given.",
    flag_values=_SAMPLERS,
)
SAMPLER_OPTIONS = flags.DEFINE_list(
    "sampler_options", [], "<NAME=X[,...]>: Options of the sampler.", flag_values=_SAMPLERS
)
SPACING = flags.DEFINE_string(
    "spacing",
    None,
    "<NAME>: Which noise levels are visited, one from --list_samplers; the model's or sampler's own if not given.",
    flag_values=_SAMPLERS,
)
TIMESTEPS = flags.DEFINE_list(
    "timesteps", None, "<X[,X...]>: Instead of a spacing: falling timesteps, one a step.", flag_values=_SAMPLERS
)
SIGMAS = flags.DEFINE_list(
    "sigmas", None, "<X[,X...]>: Instead of a spacing: falling noise levels, the last one 0.", flag_values=_SAMPLERS
)
LIST_SAMPLERS = flags.DEFINE_bool(
    "list_samplers", False, "Print all samplers and spacings, one line each, and exit.", flag_values=_SAMPLERS
)

_PICTURE = flags.FlagValues()
IMAGE = flags.DEFINE_multi_string(
    "image",
    None,
    "<FILE>: A picture to start from, .png, .jpg or .webp; given several times, one a prompt or one an image.",
    flag_values=_PICTURE,
)
MASK = flags.DEFINE_multi_string(
    "mask",
    None,
    "<FILE>: A picture, white where to draw anew; given several times, one a prompt or one an image.",
    flag_values=_PICTURE,
)
STRENGTH = flags.DEFINE_list(
    "strength",
    None,
    "<X[,X...]>: 0 to 1, how much of the picture is drawn anew: one, or one an image; 0.8 if not given, 1 with a mask.",
    flag_values=_PICTURE,
)
RESIZE = flags.DEFINE_enum(
    "resize",
    None,
    ["cover", "fit", "stretch"],
    "How a picture of another size is brought to height x width; without it the image has the picture's size.",
    flag_values=_PICTURE,
)
FEATHER = flags.DEFINE_integer(
    "feather", 0, "Pixels over which what is drawn fades in behind the mask's edge.", flag_values=_PICTURE
)

_SEEDS = flags.FlagValues()
SEED = flags.DEFINE_list(
    "seed",
    None,
    "<N[,N...]>: One seed, of the first image, others having the next ones; or one an image. Drawn if not given.",
    flag_values=_SEEDS,
)
RNG = flags.DEFINE_string(
    "rng",
    "philox",
    "<philox|torch>: Which noise a seed stands for; torch is that of diffusers on a CPU.",
    flag_values=_SEEDS,
)
EXACT = flags.DEFINE_bool(
    "exact", False, "Draw every image by itself: the same in any batch, bit by bit.", flag_values=_SEEDS
)
REPLAY = flags.DEFINE_string(
    "replay", None, "<FILE>: A picture made here: make it again from what it says.", flag_values=_SEEDS
)

_MANY = flags.FlagValues()
BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Images for each prompt.", flag_values=_MANY)
PROMPTS = flags.DEFINE_string(
    "prompts", None, "<FILE>: Prompts for --output_dir, .txt, .csv, .jsonl or .parquet.", flag_values=_MANY
)
OUTPUT_DIR = flags.DEFINE_string(
    "output_dir",
    None,
    "<FOLDER>: Where many images go, each saved once it is finished; the same command goes on where it was ended.",
    flag_values=_MANY,
)
FORMAT = flags.DEFINE_enum(
    "format", None, ["png", "jpg", "webp"], "Of the files in --output_dir; png if not given.", flag_values=_MANY
)
PLAN = flags.DEFINE_bool(
    "plan", False, "Print how it would be drawn: at once, memory, programs; draw nothing.", flag_values=_MANY
)

_FILES = flags.FlagValues()
OUTPUT = flags.DEFINE_string(
    "output",
    "out.png",
    "<FILE>: Where to save, .png, .jpg or .webp; several images become out_1.png, out_2.png, ...",
    flag_values=_FILES,
)
GRID = flags.DEFINE_string("grid", None, "<FILE>: Where to save all images on one sheet as well.", flag_values=_FILES)
GRID_COLUMNS = flags.DEFINE_integer(
    "grid_columns", None, "Images in a row of it; nearly a square if not given.", flag_values=_FILES
)
METADATA = flags.DEFINE_enum(
    "metadata", "on", ["on", "off"], "Whether files say how they were made.", flag_values=_FILES
)

_MODEL = flags.FlagValues()
MODEL = flags.DEFINE_string(
    "model",
    "tiny",
    "<MODEL>: tiny, sd-v1-4, sd-v2-1, a folder, a .safetensors file, or org/name on the Hugging Face hub.",
    flag_values=_MODEL,
)
WEIGHTS = flags.DEFINE_string(
    "weights",
    "pretrained",
    "<pretrained|random>: The model's weights; random is the architecture without a download.",
    flag_values=_MODEL,
)
REVISION = flags.DEFINE_string(
    "revision", None, "<NAME>: A branch, tag or commit of a model on the hub.", flag_values=_MODEL
)
VARIANT = flags.DEFINE_string(
    "variant", None, "<NAME>: Which of several sets of weights to take, such as fp16.", flag_values=_MODEL
)

_EXECUTION = flags.FlagValues()
PRECISION = flags.DEFINE_string(
    "precision",
    "auto",
    "<NAME>: auto, float32, mixed_float16, mixed_bfloat16, float16 or bfloat16.",
    flag_values=_EXECUTION,
)
JIT_COMPILE = flags.DEFINE_enum(
    "jit_compile", "auto", ["auto", "true", "false"], "Whether XLA compiles the stages.", flag_values=_EXECUTION
)

PROGRAM = Program(
    name="kerasdiff",
    about="draws pictures of what prompts say, with Stable Diffusion, and saves them.",
    usage='python -m kerasdiff "a prompt" ["another prompt" ...] [--flag=value ...]',
    examples="""\
python -m kerasdiff "a red circle on a blue background"
python -m kerasdiff "a star" "a ring" --batch_size=2 --seed=7 --output=out.png --grid=all.png
python -m kerasdiff "a photograph of a horse" --model=sd-v1-4 --num_steps=25 --negative_prompt=fog
python -m kerasdiff "a green square" --image=photo.png --mask=mask.png --resize=cover
python -m kerasdiff --prompts=rows.csv --output_dir=out
python -m kerasdiff --replay=out.png --output=again.png""",
    groups={
        "what to draw": _WHAT,
        "size and steps": _SIZE,
        "guidance": _GUIDANCE,
        "samplers": _SAMPLERS,
        "from a picture": _PICTURE,
        "seeds and exactness": _SEEDS,
        "many images": _MANY,
        "files": _FILES,
        "model": _MODEL,
        "how it runs": _EXECUTION,
        "what is printed": printed_flags("Print a line of JSON for each image, or for what was asked.", progress=True),
    },
    status_1="images are missing, or stdout cannot be written to",
    more="""\
other programs, each with --help
  python -m kerasdiff.bulk      many prompts on many machines
  python -m kerasdiff.info      what this installation has, chooses and keeps
  python -m kerasdiff.convert   one kind of checkpoint to another
  python -m kerasdiff.verify    a model's numbers against published ones
  python -m kerasdiff.bench     how fast it is here, beside others

python -m kerasdiff is installed as kerasdiff, too.""",
)
