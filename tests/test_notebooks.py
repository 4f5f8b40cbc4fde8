"""Every notebook runs from its first cell to its last, and what is stored of it is what a reader should see.

`python tests/test_notebooks.py` runs all of them, or those that are named, and stores their outputs.
"""

from __future__ import annotations

import os
import pathlib
import re
import sys
import tempfile

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
NAMES = (
    "01_text_to_image",
    "02_image_to_image",
    "03_samplers_and_seeds",
    "04_inside",
    "05_benchmark",
    "06_your_own_model",
    "07_adapters",
    "08_latent_walk",
    "09_sdxl",
    "10_control",
)
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_BYTES = 700_000
COLAB = "https://colab.research.google.com/github/kerasdiff/kerasdiff/blob/main/notebooks/"
A_MACHINES_PATH = re.compile(r"/(home|root|Users|tmp|work|var/folders)/|site-packages|[A-Z]:\\")
# tqdm wants ipywidgets in a notebook, even for no bar at all; Colab and JupyterLab have it.
ENVIRONMENT = {"KERASDIFF_MODEL": "tiny", "PYTHONWARNINGS": "ignore:IProgress not found"}

# Each of the others takes a minute or two.
QUICK = ("01_text_to_image",)

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def run(path: pathlib.Path, folder: pathlib.Path | str, **environment: str) -> nbformat.NotebookNode:
    """A notebook with the outputs of a run on the embedded model, with `folder` as its working folder."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
        # What TensorFlow's C++ code writes to the process's stderr differs by machine, and is not the notebook's.
        extra_arguments=["--IPKernelApp.capture_fd_output=False"],
    )
    client.execute(env={**os.environ, **ENVIRONMENT, **environment})
    return notebook


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def pictures(notebook):
    return [output for output in outputs(notebook) if "image/png" in output.get("data", {})]


def shown_text(notebook):
    """Everything that a reader can read, without the pictures."""
    for cell in notebook.cells:
        yield cell.source
    for output in outputs(notebook):
        yield output.get("text", "")
        yield from (text for kind, text in output.get("data", {}).items() if kind.startswith("text/"))


def check_outputs(notebook):
    assert [output.output_type for output in outputs(notebook) if output.output_type == "error"] == []
    assert [output.text for output in outputs(notebook) if output.get("name") == "stderr"] == []
    assert [found.group() for text in shown_text(notebook) if (found := A_MACHINES_PATH.search(text))] == []
    assert pictures(notebook)


def test_all_of_them_are_here():
    assert tuple(path.stem for path in NOTEBOOKS) == NAMES


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else pytest.mark.slow) for path in NOTEBOOKS],
)
def test_it_runs(path, tmp_path):
    notebook = run(path, tmp_path)
    check_outputs(notebook)
    assert len(pictures(notebook)) == len(pictures(nbformat.read(path, as_version=4)))


@each
def test_what_is_stored(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    check_outputs(notebook)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert path.stat().st_size < MAX_BYTES


@each
def test_its_first_cell(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# .+\n\n\*\*Description:\*\* .+\n", first.source)
    assert re.findall(re.escape(COLAB) + r"([^)\s]*)", first.source) == [path.name]


def store(names: list[str]) -> None:
    """Runs notebooks, all of them if none is named, and writes their outputs into their files."""
    with tempfile.TemporaryDirectory() as cache:
        for path in [FOLDER / f"{name}.ipynb" for name in names] or NOTEBOOKS:
            with tempfile.TemporaryDirectory() as folder:
                notebook = run(path, folder, KERASDIFF_CACHE=cache)
            notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
            nbformat.write(notebook, path)


if __name__ == "__main__":
    store(sys.argv[1:])
