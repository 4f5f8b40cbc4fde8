"""What TensorFlow traced, as graphs of OpenVINO; only this imports TensorFlow for it."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from openvino.passes import ConstantFolding, Manager

from kerasdiff.runtime.backends import openvino_layout, openvino_operations, tf_tracing
from kerasdiff.runtime.backends.openvino_program import only, operations, ov


def traced(
    function: Callable[..., Any], values: Sequence[Any], arguments: Sequence[Any], lasting: Collection[int]
) -> dict[str, Any]:
    """The graphs "between", "lasting" and "rest" of a function of (list of values, *arguments), without empty ones.

    Parameters are called "value_0" and so on, "argument_0" and so on, and after the part that gives them.
    """
    graph = tf_tracing.traced(function, values, arguments, "openvino")
    renamed = {name: f"value_{index}" for index, name in enumerate(graph.values)}
    renamed |= {name: f"argument_{index}" for index, name in enumerate(graph.arguments)}
    rest = _converted(graph, renamed)
    _transpose_factors(rest)
    openvino_layout.settle(rest)
    models = {}
    kept = {f"argument_{index}" for index in lasting}
    for part, of in (("between", lambda name: name.startswith("value_")), ("lasting", lambda name: name in kept)):
        known = lambda name, of=of: of(name) or not name.startswith("argument_")  # noqa: E731
        first, rest = _cut(rest, known, part)
        if first is not None:
            models[part] = first
    return {**models, "rest": rest}


def _converted(graph: tf_tracing.Graph, renamed: dict[str, str]) -> Any:
    """A graph with parameters that have new names."""
    nodes = tf.compat.v1.GraphDef(versions=graph.nodes.versions, library=graph.nodes.library)
    nodes.node.extend(each for node in graph.nodes.node for each in _readable(node))
    for node in nodes.node:
        node.name = renamed.get(node.name, node.name)
        node.input[:] = [renamed.get(source.partition(":")[0], source) for source in node.input]
    types = [graph.shapes(name).dtype.as_datatype_enum for name in graph.outputs]
    results = [f"result_{index}" for index in range(len(types))]
    for name, source, kind in zip(results, graph.outputs, types, strict=True):
        nodes.node.add(name=name, op="Identity", input=[source]).attr["T"].type = kind
    # From a file: of a graph in memory it reads no bfloat16.
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "graph.pb"
        path.write_bytes(nodes.SerializeToString())
        model = ov.convert_model(path, extension=[openvino_operations.EXTENSION])
    named = {name.partition(":")[0]: port.get_node() for port in model.outputs for name in port.get_names()}
    model = ov.Model([named[name] for name in results], model.get_parameters())
    passes = Manager()
    passes.register_pass(ConstantFolding())  # or shapes would be computed of parameters
    passes.run_passes(model)
    for parameter in model.get_parameters():
        (name,) = {name.partition(":")[0] for name in parameter.output(0).get_names()} & {*renamed.values()}
        parameter.set_friendly_name(name)
    return model


def _readable(node: Any) -> Iterator[Any]:
    """A node, or two that give the same: OpenVINO reads no constant in bfloat16."""
    if node.op != "Const" or node.attr["dtype"].type != tf.bfloat16.as_datatype_enum:
        yield node
        return
    wide = tf.compat.v1.NodeDef(name=f"{node.name}/float32", op="Const")
    values = tf.make_ndarray(node.attr["value"].tensor).astype("float32")
    wide.attr["dtype"].type = tf.float32.as_datatype_enum
    wide.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(values))
    yield wide
    cast = tf.compat.v1.NodeDef(name=node.name, op="Cast", input=[wide.name])
    cast.attr["SrcT"].type, cast.attr["DstT"].type = wide.attr["dtype"].type, node.attr["dtype"].type
    yield cast


def _transpose_factors(model: Any) -> None:
    """Lays out factors of products that depend on parameters alone as they are read: a row per output."""
    of_values: set[str] = set()
    for node in model.get_ordered_ops():
        sources = [port.get_source_output() for port in node.inputs()]
        names = {source.get_node().get_name() for source in sources}
        nodes = [source.get_node() for source in sources]
        constants = {each.get_name() for each in nodes if each.get_type_name() == "Constant"}
        if node.get_type_name() == "Parameter":
            known = node.get_friendly_name().startswith("value_")
        else:
            known = bool(names) and names <= of_values | constants and bool(names & of_values)
        if known:
            of_values.add(node.get_name())
        elif node.get_type_name() == "MatMul" and sources[1].get_node().get_name() in of_values:
            attributes = node.get_attributes()
            if len(sources[1].get_shape()) == 2 and not attributes["transpose_b"]:
                factor = operations.transpose(sources[1], np.array([1, 0]))
                product = operations.matmul(sources[0], factor, attributes["transpose_a"], True)
                product.set_friendly_name(node.get_friendly_name())
                node.output(0).replace(product.output(0))


def _cut(model: Any, known: Callable[[str], bool], part: str) -> tuple[Any | None, Any]:
    """What a graph computes of `known` parameters alone, or None, and the rest with parameters in its place."""
    of_known: set[str] = set()
    of_others: set[str] = set()
    for node in model.get_ordered_ops():
        name, sources = node.get_name(), {port.get_source_output().get_node().get_name() for port in node.inputs()}
        if node.get_type_name() == "Parameter":
            (of_known if known(node.get_friendly_name()) else of_others).add(name)
        elif node.get_type_name() == "Result" or sources & of_others:
            of_others.add(name)
        elif sources & of_known:
            of_known.add(name)
    results: list[Any] = []
    parameters: list[Any] = []
    for node in model.get_ordered_ops():
        if node.get_name() not in of_known or node.get_type_name() == "Parameter":
            continue
        for output in node.outputs():
            targets = [port for port in output.get_target_inputs() if port.get_node().get_name() in of_others]
            if not targets:
                continue
            parameter = operations.parameter(output.get_shape(), output.get_element_type())
            parameter.set_friendly_name(f"{part}_{len(parameters)}")
            parameters.append(parameter)
            results.append(operations.result(output))
            for port in targets:
                port.replace_source_output(parameter.output(0))
    if not results:
        return None, model
    everything = [*model.get_parameters(), *parameters]
    return only(results, everything), only(model.get_results(), everything)
