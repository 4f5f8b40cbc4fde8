"""Where the time of a step goes on OpenVINO, by kind of work, from its own counters, perhaps beside another graph.

python benchmarks/step_profile.py [--height=256] [--runs=20] [--peer=.../unet.xml] [--output=...json]

Random weights, one image with guidance. `--peer` is a U-Net that `kerasdiff.bench` prepared for OpenVINO's row, run in
turns with ours in the same process. A node counts with its least time of all runs, so that what else the machine does
is left out; "waiting" is what is left of the fastest run.
"""

from __future__ import annotations

import collections
import math
import pathlib
import time
from typing import Any

import numpy as np
from absl import app, flags

import kerasdiff
from kerasdiff.bench.machine import results_folder, write_results
from kerasdiff.runtime.backends import openvino_program as backend

_MODEL = flags.DEFINE_string("model", "sd-v1-4", "Whose U-Net, with random weights.")
_HEIGHT = flags.DEFINE_integer("height", 256, "Pixels, of the width too.")
_RUNS = flags.DEFINE_integer("runs", 20, "Steps of each.", lower_bound=2)
_PEER = flags.DEFINE_string("peer", None, "A U-Net as an IR file, computed in bfloat16.")
_OUTPUT = flags.DEFINE_string("output", f"{results_folder()}/step_profile_256.json", "For figures; a table beside.")
_LARGEST = 15
_KINDS = {
    "convolution": {"Convolution", "ConvolutionBackpropData", "GroupConvolution"},
    "product": {"FullyConnected", "MatMul"},
    "attention": {"ScaledDotProductAttention", "Softmax"},  # and fused subgraphs with a softmax
    "norm": {"MVN", "Reduce", "ReduceMean", "RMS", "GroupNormalization", "MulAdd"},
    # With the scales of norms and the sums that are computed along with them.
    "activation": {"Subgraph", "Add", "Multiply", "Swish", "SwishCPU", "Gelu", "Eltwise"},
    "layout": {
        "Transpose",
        "Reorder",
        "Concat",
        "Split",
        "VariadicSplit",
        "StridedSlice",
        "Convert",
        "Reshape",
        "Tile",
    },
}
_ALL_KINDS = (*_KINDS, "other", "waiting")


def main(_: list[str]) -> None:
    backend._CORE.set_property("CPU", {"PERF_COUNT": True})
    requests = {"kerasdiff": _ours()}
    if _PEER.value:
        requests["peer"] = _peer(_PEER.value)
    seconds: dict[str, list[float]] = {name: [] for name in requests}
    least: dict[str, dict[str, float]] = {name: {} for name in requests}
    for _run in range(_RUNS.value + 1):
        for name, (_compiled, request) in requests.items():
            began = time.perf_counter()
            request.infer()
            seconds[name].append(time.perf_counter() - began)
            for node in request.get_profiling_info():
                spent = node.real_time.total_seconds()
                least[name][node.node_name] = min(spent, least[name].get(node.node_name, math.inf))
    graphs = {
        name: _profile(compiled, seconds[name][1:], least[name]) for name, (compiled, _request) in requests.items()
    }
    work = {"model": _MODEL.value, "height": _HEIGHT.value, "runs": _RUNS.value, "guidance": True}
    output = pathlib.Path(_OUTPUT.value)
    write_results(output, {**work, "graphs": graphs})
    table = _table(graphs)
    output.with_suffix(".md").write_text(table)
    print(table)


def _ours() -> tuple[Any, Any]:
    """The compiled U-Net of a guided step, and its request with the inputs of one."""
    precision = "bfloat16" if "BF16" in backend._CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "auto"
    generator = kerasdiff.Generator(_MODEL.value, weights="random", backend="openvino", precision=precision)
    generator.generate("a cat", num_steps=2, height=_HEIGHT.value, width=_HEIGHT.value, seed=0)
    denoise = generator._pipeline.denoise.compiled
    (program,) = (made for each in denoise if each.name.startswith("guided") for made in each._made.values())
    _ours.program = program  # its constants must stay
    return program._rest.compiled, program._rest._request


def _peer(path: str) -> tuple[Any, Any]:
    properties = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY"}
    compiled = backend._CORE.compile_model(path, "CPU", properties)
    request = compiled.create_infer_request()
    for index, port in enumerate(compiled.inputs):
        values = np.random.default_rng(index).standard_normal(tuple(port.shape)).astype("float32")
        request.set_input_tensor(index, backend.ov.Tensor(values, shared_memory=False))
    return compiled, request


def _profile(compiled: Any, seconds: list[float], least: dict[str, float]) -> dict[str, Any]:
    """Milliseconds and nodes of each kind, and of the shapes that take longest."""
    kinds = {kind: {"nodes": 0, "ms": 0.0} for kind in _ALL_KINDS}
    shapes: dict[tuple[str, str], dict[str, Any]] = collections.defaultdict(lambda: {"nodes": 0, "ms": 0.0})
    for node in compiled.get_runtime_model().get_ops():
        about = node.get_rt_info()
        spent = 1000 * least.get(node.get_friendly_name(), 0.0)
        if spent == 0:
            continue
        layer, names = (about[key].astype(str) for key in ("layerType", "originalLayersNames"))
        kind, work = _kind(layer, names), _work(layer, node)
        sizes = " and ".join("x".join(map(str, port.get_shape())) for port in node.inputs()[:2])
        for row in (kinds[kind], shapes[kind, f"{sizes} to {'x'.join(map(str, node.output(0).get_shape()))}"]):
            row["nodes"] += 1
            row["ms"] += spent
            if work:
                row["gflop"] = row.get("gflop", 0.0) + work / 1e9
    everything = sum(row["ms"] for row in kinds.values())
    kinds["waiting"]["ms"] = max(0.0, 1000 * min(seconds) - everything)
    largest = sorted(shapes.items(), key=lambda item: -item[1]["ms"])[:_LARGEST]
    return {
        "seconds": {"median": float(np.median(seconds)), "min": min(seconds), "max": max(seconds)},
        "kinds": {kind: _rounded(row) for kind, row in kinds.items()},
        "largest": [{"kind": kind, "shapes": sizes, **_rounded(row)} for (kind, sizes), row in largest],
    }


def _kind(layer: str, names: str) -> str:
    """Of a type of layer, made of layers with some names."""
    if layer == "Subgraph" and "Softmax" in names:
        return "attention"
    return next((kind for kind, layers in _KINDS.items() if layer in layers), "other")


def _work(layer: str, node: Any) -> float:
    """Floating point operations of a convolution or a product; those of other nodes are not counted."""
    inputs, results = [tuple(port.get_shape()) for port in node.inputs()], tuple(node.output(0).get_shape())
    if layer == "Convolution":
        return 2.0 * math.prod(results) * math.prod(inputs[1][1:])
    return 2.0 * math.prod(results) * inputs[0][-1] if layer in _KINDS["product"] else 0.0


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    rate = {"gflops_per_s": round(1000 * row["gflop"] / row["ms"])} if row.get("gflop") else {}
    return {"nodes": row["nodes"], "ms": round(row["ms"], 1), **rate}


def _table(graphs: dict[str, Any]) -> str:
    """Kinds of work as rows, and what takes longest, in Markdown."""
    names = list(graphs)
    rows = [["kind of work", *(f"{name}, ms (nodes)" for name in names)]]
    for kind in _ALL_KINDS:
        rows.append([kind, *("{ms:.1f} ({nodes})".format(**graphs[name]["kinds"][kind]) for name in names)])
    seconds = [[1000 * graphs[name]["seconds"][which] for which in ("min", "median", "max")] for name in names]
    rows.append(["whole step, least, median and most", *("{:.0f}, {:.0f}, {:.0f}".format(*each) for each in seconds)])
    slow = [["kind", "shapes", "nodes", "ms", "GFLOP/s"]]
    for row in graphs[names[0]]["largest"]:
        slow.append([row["kind"], row["shapes"], str(row["nodes"]), str(row["ms"]), str(row.get("gflops_per_s", ""))])
    return "\n".join([*_markdown(rows), "", *_markdown(slow)]) + "\n"


def _markdown(rows: list[list[str]]) -> list[str]:
    head, *body = rows
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]


if __name__ == "__main__":
    app.run(main)
