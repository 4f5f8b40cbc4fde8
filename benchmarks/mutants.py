"""Whether the tests find faults: 40 lines of the package are made wrong, one at a time, and a test must fail.

python benchmarks/mutants.py [--only=NAME]

Everything happens in a copy of the working tree. A line is looked for in the whole package, so that it may move to
another file. With --only no results are written.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from absl import app, flags

_ONLY = flags.DEFINE_multi_string("only", [], "A fault to try; given several times, several. All if not given.")
_LIMIT = flags.DEFINE_integer("limit", 180, "Seconds that the tests of a fault may take.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "benchmarks/results/mutants.json", "Where the figures go.")

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Without the project's own options, of which one refuses a mark that no test has.
_PYTEST = ("-m", "pytest", "-o", "addopts=", "-x", "-q", "-p", "no:cacheprovider", "-m", "not full_size and not slow")
_PASSED, _FAILED = 0, 1


class Fault(NamedTuple):
    """A line that is made wrong.

    Attributes:
        name: for --only.
        about: what is wrong then.
        old: a part of a line that is in the package once.
        new: what takes its place.
        tests: names of tests, as pytest takes them, of which one must fail.
    """

    name: str
    about: str
    old: str
    new: str
    tests: tuple[str, ...]


class Place(NamedTuple):
    """Where a fault's line is: a file of the package, and the number of the line, from 0."""

    path: pathlib.Path
    number: int


_SAMPLERS = "tests/samplers/test_samplers.py"
_GOLDEN = "tests/samplers/test_golden.py"
_REQUEST = "tests/test_request.py"
_DENOISE = "tests/diffusion/test_denoise_step.py"
_PICTURES = "tests/test_image_to_image.py"
_MASKS = "tests/images/test_masks.py"
_BATCHING = "tests/runtime/test_batch_sizer.py"
_MEMORY = "tests/runtime/test_memory.py"
_TILES = "tests/diffusion/test_tiling.py"
_CHECKPOINTS = "tests/checkpoints/test_checkpoints.py"
_LAYOUT = "tests/checkpoints/test_layout.py"
_HOSTILE = "tests/checkpoints/test_hostile.py"
_IDENTITY = "tests/checkpoints/test_identity.py"
_RECEIPT = "tests/metadata/test_receipt.py"
_REPLAY = "tests/metadata/test_replay.py"
_JOBS = "tests/batch/test_jobs.py"
_MANIFEST = "tests/batch/test_manifest.py"
_ROWS = "tests/batch/test_rows.py"
_WORKER = "tests/batch/ray/test_worker.py"
_COMMAND_LINE = "tests/cli/test_generate_command.py"

FAULTS = (
    # Samplers.
    Fault(
        "heun_sign",
        "Heun's second slope is subtracted",
        "(M1 + at_next) / 2",
        "(M1 - at_next) / 2",
        (f"{_SAMPLERS}::test_the_error_on_gaussian_data_falls_with_the_stated_order[heun]",),
    ),
    Fault(
        "ancestral_variance",
        "an ancestral step does not go down by the variance that its noise adds",
        "np.sqrt(sigma_next**2 - up**2)",
        "np.sqrt(sigma_next**2 + up**2)",
        (f"{_SAMPLERS}::test_fresh_noise_restores_the_noise_level[euler_a]",),
    ),
    Fault(
        "multistep_slope",
        "the slope of DPM-Solver++ is scaled by the wrong one of two steps",
        "(D - M0) * h / h_last",
        "(D - M0) * h_last / h",
        (f"{_GOLDEN}::test_the_published_sums_of_the_family_of_unit_variance",),
    ),
    Fault(
        "unipc_correction",
        "UniPC adds what it should subtract",
        "first_order - (scale if predict_x0",
        "first_order + (scale if predict_x0",
        (f"{_SAMPLERS}::test_the_error_on_gaussian_data_falls_with_the_stated_order[unipc]",),
    ),
    Fault(
        "pndm_weights",
        "a coefficient of the Adams-Bashforth formula has the wrong sign",
        "np.array([55, -59, 37, -9]) / 24",
        "np.array([55, -59, 37, 9]) / 24",
        (f"{_SAMPLERS}::test_the_error_on_gaussian_data_falls_with_the_stated_order[pndm]",),
    ),
    Fault(
        "row_step",
        "a row belongs to the step before its own",
        "sigma * (1 - 1e-9)) - 1",
        "sigma * (1 + 1e-9)) - 1",
        (f"{_SAMPLERS}::test_each_row_belongs_to_the_step_whose_level_it_is_at",),
    ),
    Fault(
        "v_prediction_sign",
        "what predicts v is read with the wrong sign",
        "-sigma / np.sqrt(1 + sigma**2)",
        "sigma / np.sqrt(1 + sigma**2)",
        (f"{_SAMPLERS}::test_the_denoised_prediction_is_the_same_from_every_kind_of_output",),
    ),
    Fault(
        "trailing_offset",
        "every timestep of a spacing is one too large",
        "-num_train_timesteps / num_steps)[:num_steps]) - 1",
        "-num_train_timesteps / num_steps)[:num_steps])",
        (f"{_SAMPLERS}::test_spacings_are_the_published_ones",),
    ),
    # Requests.
    Fault(
        "upper_bound",
        "the largest allowed number is refused",
        "number < low or (high is not None and number > high)",
        "number < low or (high is not None and number >= high)",
        (f"{_REQUEST}::test_a_wrong_argument_is_one_clear_line",),
    ),
    Fault(
        "infinite_number",
        "an infinite number is taken",
        "if not math.isfinite(number):",
        "if math.isnan(number):",
        (f"{_REQUEST}::test_a_wrong_argument_is_one_clear_line",),
    ),
    Fault(
        "order_of_values",
        "one value a prompt is given to the images of other prompts",
        "[value for value in values for _ in range(batch_size)]",
        "[value for _ in range(batch_size) for value in values]",
        (f"{_REQUEST}::test_guidance_is_one_weight_a_step_or_an_image",),
    ),
    Fault(
        "end_of_interval",
        "guidance is on for one step too many",
        "(start <= fraction) & (fraction < end)",
        "(start <= fraction) & (fraction <= end)",
        (f"{_REQUEST}::test_guidance_can_be_on_for_a_part_of_the_run",),
    ),
    # Denoising, guidance, and where a run starts from a picture.
    Fault(
        "guidance_base",
        "the weight of guidance is one too large",
        "without + scale * (conditional - without)",
        "conditional + scale * (conditional - without)",
        (f"{_DENOISE}::test_guidance_rescaled_has_the_deviation_of_the_conditional_prediction",),
    ),
    Fault(
        "guidance_rescale",
        "rescaling by a share adds to what it should take the place of",
        "(1 + rescale * (ratio - 1))",
        "(1 + rescale * ratio)",
        (f"{_DENOISE}::test_guidance_rescaled_has_the_deviation_of_the_conditional_prediction",),
    ),
    Fault(
        "guidance_of_first_step",
        "the first step is taken for one in which the image waits",
        "np.where(steps >= 0, guidance[steps, images]",
        "np.where(steps > 0, guidance[steps, images]",
        (f"{_DENOISE}::test_the_compiled_step_is_the_table_run_by_numpy[euler-False]",),
    ),
    Fault(
        "noise_on_picture",
        "a picture gets as much noise as a run from noise alone",
        "latents + _each(run.initial_sigmas) * noise",
        "latents + _each(run.initial_scales) * noise",
        (f"{_PICTURES}::test_image_to_image_is_diffusers[DDIMScheduler-0.35]",),
    ),
    Fault(
        "held_level",
        "what a mask leaves out is held at the noise level of the row before",
        "run.levels[row]",
        "run.levels[row - 1]",
        (f"{_PICTURES}::test_inpainting_is_diffusers[DDIMScheduler-v1-0.5]",),
    ),
    Fault(
        "start_in_the_middle",
        "steps of a run from a picture are counted from its own first one",
        "first_step + table.steps",
        "table.steps",
        (f"{_PICTURES}::test_every_sampler_starts_on_a_whole_step[euler]",),
    ),
    Fault(
        "feather",
        "a mask's edge is half a pixel on the wrong side",
        "(_depth(covered) - 0.5) / feather",
        "(_depth(covered) + 0.5) / feather",
        (f"{_MASKS}::test_the_weight_rises_with_the_distance_from_the_edge",),
    ),
    # What fits into memory.
    Fault(
        "halving",
        "a batch becomes less than half as large",
        "if size <= self.images // 2",
        "if size < self.images // 2",
        (f"{_BATCHING}::test_portions_are_halved_down_to_the_smallest_part",),
    ),
    Fault(
        "padding",
        "a batch that is of a usual size is filled up to the next one",
        "if size >= images)",
        "if size > images)",
        (f"{_BATCHING}::test_the_rest_of_a_split_is_filled_up_to_one_of_a_few_sizes",),
    ),
    Fault(
        "other_widths",
        "what was learned of images of one width holds for all",
        "return self.stage, self.height, self.width",
        "return self.stage, self.height, 0",
        (f"{_BATCHING}::test_other_work_knows_nothing_of_it",),
    ),
    Fault(
        "idle_pages",
        "pages that the kernel would take back count as used",
        "max(0, taken - spare)",
        "max(0, taken)",
        (f"{_MEMORY}::test_a_containers_bound_counts_and_pages_of_files_do_not",),
    ),
    Fault(
        "last_tile",
        "the last tile does not reach the end of the picture",
        "(length - side) // max(parts - 1, 1)",
        "(length - side) // max(parts, 1)",
        (f"{_TILES}::test_tiles_have_one_shape_and_overlap_by_a_quarter",),
    ),
    # Checkpoints.
    Fault(
        "kernel_axes",
        "height and width of a checkpoint's kernels are swapped",
        "values.transpose(2, 3, 1, 0)",
        "values.transpose(3, 2, 1, 0)",
        (f"{_CHECKPOINTS}::test_every_network_gives_diffusers_numbers_from_a_folder[v1]",),
    ),
    Fault(
        "first_tensor",
        "the length before a header does not count for where tensors begin",
        "start = 8 + length",
        "start = length",
        (f"{_LAYOUT}::test_both_ways_of_writing_give_the_same_tensors",),
    ),
    Fault(
        "name_twice",
        "a header that has a name twice is read",
        "if len(values) != len(pairs):",
        "if len(values) > len(pairs):",
        (f"{_HOSTILE}::test_a_corpus_of_hostile_files",),
    ),
    Fault(
        "last_sample",
        "the end of a kept file is not looked at",
        "max(start, size - _SAMPLED)",
        "max(start, size)",
        (f"{_LAYOUT}::test_a_mapped_file_tells_what_never_reached_the_disk",),
    ),
    Fault(
        "identity_places",
        "what identifies a large file reaches beyond its end",
        "np.linspace(0, max(size - PIECE, 0), PIECES",
        "np.linspace(0, max(size, 0), PIECES",
        (f"{_IDENTITY}::test_a_file_of_64_gigabytes_is_read_at_34_places",),
    ),
    # What files say of themselves.
    Fault(
        "receipt_row",
        "a receipt of one image tells of the first one of its batch",
        "without.only([self.index])",
        "without.only([0])",
        (f"{_RECEIPT}::test_the_row_of_one_image",),
    ),
    Fault(
        "receipt_index",
        "a receipt may tell of an image behind the last one",
        "0 <= self.index < images",
        "0 <= self.index <= images",
        (f"{_RECEIPT}::test_rows_that_do_not_fit_are_refused",),
    ),
    Fault(
        "new_packages",
        "packages that were not there when an image was made make no difference",
        "sorted({*receipt.versions, *now.versions})",
        "sorted({*receipt.versions})",
        (f"{_RECEIPT}::test_what_differs_now",),
    ),
    Fault(
        "replayed_image",
        "the first image of a batch is made again, whichever was asked for",
        "generator.run(request.only([index])",
        "generator.run(request.only([0])",
        (f"{_REPLAY}::test_an_exact_picture_is_drawn_without_its_batch",),
    ),
    # Jobs.
    Fault(
        "resume_group",
        "a missing image is drawn without those that it was drawn with",
        "missing if self.job.exact else block",
        "missing",
        (f"{_JOBS}::test_a_missing_picture_is_drawn_with_those_it_was_drawn_with",),
    ),
    Fault(
        "same_names",
        "two ids may differ by upper and lower case only",
        'unicodedata.normalize("NFC", row_id).casefold()',
        'unicodedata.normalize("NFC", row_id)',
        (f"{_ROWS}::test_what_is_wrong_is_one_line_with_file_and_line",),
    ),
    Fault(
        "flushed_line",
        "a line of the manifest is not on the disk when the next one is written",
        "os.fsync(self._file)",
        "pass",
        (f"{_JOBS}::test_a_full_disk_ends_the_job_and_keeps_what_there_is",),
    ),
    Fault(
        "locked_folder",
        "two processes may work in one folder",
        "lock.acquire(timeout=0)",
        "pass",
        (f"{_MANIFEST}::test_only_one_process_works_in_a_folder_and_death_frees_it",),
    ),
    Fault(
        "manifest_part",
        "a job that goes on writes over the last part of its manifest",
        "max(self._next, int(match[1]) + 1)",
        "max(self._next, int(match[1]))",
        (f"{_WORKER}::test_the_manifest_keeps_what_was_drawn_and_forgets_what_failed",),
    ),
    # The command line.
    Fault(
        "first_of_several",
        "of a flag that is given several times only the first one counts",
        "values[0] if len(values) == 1 else values",
        "values[0]",
        (f"{_COMMAND_LINE}::test_every_flag_reaches_the_request",),
    ),
    Fault(
        "numbered_files",
        "files of several images are numbered from 0",
        "for number in range(1, count + 1)]",
        "for number in range(count)]",
        (f"{_COMMAND_LINE}::test_it_draws_what_python_draws",),
    ),
)


def main(_: list[str]) -> None:
    unknown = sorted({*_ONLY.value} - {fault.name for fault in FAULTS})
    if unknown:
        sys.exit(f"there is no fault {unknown[0]}")
    faults = [fault for fault in FAULTS if not _ONLY.value or fault.name in _ONLY.value]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = pathlib.Path(folder)
        copy(tree)
        places = {fault.name: find(tree, fault) for fault in faults}
        began = time.perf_counter()
        tests = dict.fromkeys(test for fault in faults for test in fault.tests)
        status, last = run_tests(tree, tests, len(faults) * _LIMIT.value)
        if status != _PASSED:
            sys.exit(f"the tests do not pass without a fault: {last}")
        baseline = time.perf_counter() - began
        print(f"without a fault all pass: {baseline:.1f} s", flush=True)
        rows = [tried(tree, fault, places[fault.name]) for fault in faults]
        seconds = time.perf_counter() - began
    caught = sum(row["caught"] for row in rows)
    print(f"{caught} of {len(rows)} faults are caught: {seconds:.0f} s")
    if not _ONLY.value:
        from kerasdiff.bench.machine import write_results

        results = {"faults": len(rows), "caught": caught, "without_fault_s": round(baseline, 1)}
        write_results(pathlib.Path(_OUTPUT.value), {**results, "seconds": round(seconds, 1), "rows": rows})
    if caught < len(rows):
        sys.exit(1)


def copy(tree: pathlib.Path) -> None:
    """Copies the files of the working tree that git knows."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)


def find(tree: pathlib.Path, fault: Fault) -> Place:
    """The only line of the package with what a fault takes the place of."""
    found = [
        Place(path, number)
        for path in sorted((tree / "kerasdiff").rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines())
        for _ in range(line.count(fault.old))
    ]
    if len(found) != 1:
        sys.exit(f"{fault.name}: {fault.old!r} is in the package {len(found)} times; it must be there once")
    return found[0]


def tried(tree: pathlib.Path, fault: Fault, place: Place) -> dict[str, Any]:
    """Makes the line wrong, runs the tests and sets it right; what came of it."""
    text = place.path.read_text()
    lines = text.splitlines(keepends=True)
    right = lines[place.number]
    wrong = lines[place.number] = right.replace(fault.old, fault.new)
    faulty = "".join(lines)
    compile(faulty, place.path, "exec")  # a test that fails for bad syntax has found nothing
    began = time.perf_counter()
    place.path.write_text(faulty)
    try:
        # A compiled file is taken for that of a source of the same length and second: no fault leaves any.
        status, last = run_tests(tree, fault.tests, _LIMIT.value, PYTHONDONTWRITEBYTECODE="1")
    finally:
        place.path.write_text(text)
    seconds = time.perf_counter() - began
    file = place.path.relative_to(tree).as_posix()
    said = {_FAILED: "caught", _PASSED: "NOT CAUGHT"}.get(status, f"ERROR, {last}")
    print(f"{fault.name:23} {file:40} {seconds:6.1f} s  {said}", flush=True)
    return {
        "name": fault.name,
        "about": fault.about,
        "file": file,
        "old": right.strip(),
        "new": wrong.strip(),
        "tests": fault.tests,
        "caught": status == _FAILED,
        "error": None if status in (_PASSED, _FAILED) else last,
        "seconds": round(seconds, 1),
    }


def run_tests(tree: pathlib.Path, tests: Iterable[str], limit: float, **more: str) -> tuple[int | None, str]:
    """Pytest's exit status, None if it took too long, and its last line; `more` goes into the environment."""
    environment = {**os.environ, "PYTHONPATH": str(tree), **more}
    with tempfile.TemporaryFile("w+") as output:
        with subprocess.Popen(
            [sys.executable, *_PYTEST, *tests],
            cwd=tree,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            try:
                status = process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that tests start
                return None, f"not ended after {limit} s"
        output.seek(0)
        lines = output.read().split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    return status, f"pytest exited with {status}: {last}"


if __name__ == "__main__":
    app.run(main)
