"""What is done to a TensorFlow graph before it is kept: nodes that compute the same become one, and it is cut in two,
what depends on parameters alone, to be computed once, and the rest.
"""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import tensorflow as tf

# What a shape comes from must stay where it can be folded.
_SHAPES = {"Shape", "ShapeN", "Rank", "Size"}


@dataclasses.dataclass(frozen=True)
class Cut:
    """Both parts of a graph: nodes from parameters to what is computed of them, and the others."""

    before: Any
    # The tensors that are computed, such as "Add:0"; in `after` they are placeholders "<prefix>_0", "<prefix>_1", ...
    between: list[str]
    after: Any


def merged(graph: Any, kept: Collection[str], outputs: Sequence[str]) -> tuple[Any, list[str]]:
    """A graph in which no two nodes compute the same, without what no output depends on, and the outputs' new names."""
    first: dict[bytes, str] = {}
    instead: dict[str, str] = {}

    def renamed(tensor: str) -> str:
        name = _node(tensor)
        return tensor.replace(name, instead[name], 1) if name in instead else tensor

    nodes = []
    for node in graph.node:
        copy = type(node)()
        copy.CopyFrom(node)
        copy.input[:] = map(renamed, node.input)
        if node.name not in kept:
            copy.name = ""
            copy.ClearField("experimental_debug_info")
            name = first.setdefault(copy.SerializeToString(deterministic=True), node.name)
            if name != node.name:
                instead[node.name] = name
                continue
            copy.name = node.name
        nodes.append(copy)
    whole = tf.compat.v1.GraphDef(versions=graph.versions, library=graph.library)
    whole.node.extend(nodes)
    outputs = [renamed(name) for name in outputs]
    needed = _needed(whole, outputs, set()).union(kept)
    del whole.node[:]
    whole.node.extend(node for node in nodes if node.name in needed)
    return whole, outputs


def cut(
    graph: Any, parameters: Sequence[str], arguments: Sequence[str], outputs: Sequence[str], prefix: str = "between"
) -> Cut:
    """Cuts a graph."""
    of_parameters, of_arguments = set(parameters), set(arguments)
    computed: set[str] = set()
    for node in graph.node:
        names = {_node(name) for name in node.input}
        if names & of_arguments:
            of_arguments.add(node.name)
        elif names & of_parameters and node.op not in _SHAPES:
            of_parameters.add(node.name)
            computed.add(node.name)
    between: dict[str, str] = {}
    after = []
    seen = _needed(graph, outputs, computed)
    for node in graph.node:
        if node.name not in seen:
            continue
        kept = type(node)()
        kept.CopyFrom(node)
        for index, name in enumerate(node.input):
            if _node(name) in computed and not name.startswith("^"):
                tensor = name if ":" in name else f"{name}:0"
                kept.input[index] = between.setdefault(tensor, f"{prefix}_{len(between)}")
        after.append(kept)
    if any(_node(name) in computed for name in outputs):
        return Cut(None, [], graph)
    rest = tf.compat.v1.GraphDef(versions=graph.versions, library=graph.library)
    rest.node.extend(tf.compat.v1.NodeDef(name=name, op="Placeholder") for name in between.values())
    rest.node.extend(after)
    if not between:
        return Cut(None, [], rest)
    needed = _needed(graph, list(between), set())
    first = tf.compat.v1.GraphDef(versions=graph.versions, library=graph.library)
    first.node.extend(node for node in graph.node if node.name in needed)
    return Cut(first, list(between), rest)


def _needed(graph: Any, tensors: Sequence[str], stop: set[str]) -> set[str]:
    """Names of the nodes that tensors depend on, without those in `stop` and what only these depend on."""
    inputs = {node.name: node.input for node in graph.node}
    found: set[str] = set()
    waiting = [_node(name) for name in tensors]
    while waiting:
        name = waiting.pop()
        if name not in found and name not in stop:
            found.add(name)
            waiting += map(_node, inputs[name])
    return found


def _node(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]
