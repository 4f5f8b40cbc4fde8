"""What is done to TensorFlow's graphs before they are kept and when they first run."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import tensorflow as tf

from kerasdiff.runtime.backends import graph_partition
from kerasdiff.runtime.backends import tensorflow as backend
from kerasdiff.runtime.values import Values


def graph_of(function, *specs):
    traced = tf.function(function, autograph=False).get_concrete_function(*specs)
    return traced, [tensor.op.name for tensor in traced.inputs], [tensor.name for tensor in traced.outputs]


def ops(graph, name):
    return sum(node.op == name for node in graph.node)


def run(graph, names, outputs, *values):
    def body(*tensors):
        return tf.graph_util.import_graph_def(graph, dict(zip(names, tensors, strict=True)), outputs, name="")

    return tf.compat.v1.wrap_function(body, [tf.TensorSpec(v.shape, v.dtype) for v in values])(*values)


def test_nodes_that_compute_the_same_become_one():
    def function(x):
        first, second = tf.exp(x) * 2.0, tf.exp(x) * 2.0
        tf.exp(x + 1.0)  # nobody asks for it
        return first, tf.sin(second), second

    traced, names, outputs = graph_of(function, tf.TensorSpec((3,)))
    merged, results = graph_partition.merged(traced.graph.as_graph_def(), names, outputs)
    assert (ops(traced.graph.as_graph_def(), "Exp"), ops(merged, "Exp"), ops(merged, "Mul")) == (3, 1, 1)
    x = tf.constant([0.0, 1.0, 2.0])
    for ours, theirs in zip(run(merged, names, results, x), function(x), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_has_a_state_is_not_merged():
    def function(x):
        return x + tf.random.uniform((3,)), x + tf.random.uniform((3,))

    traced, names, outputs = graph_of(function, tf.TensorSpec((3,)))
    states = [node.name for node in traced.graph.get_operations() if node.op_def.is_stateful]
    merged, results = graph_partition.merged(traced.graph.as_graph_def(), {*names, *states}, outputs)
    assert ops(merged, "RandomUniform") == 2
    first, second = run(merged, names, results, tf.zeros(3))
    assert not np.array_equal(first, second)


def test_a_result_may_be_an_argument():
    values, x = Values([tf.constant([2.0])]), tf.constant([3.0])
    for jit_compile in (False, True):
        program = backend.load(backend.trace(lambda v, x: (x, v[0] * x, v[0] * x), values, [x], jit_compile))
        assert [float(result[0]) for result in program(values, [x])] == [3.0, 6.0, 6.0]


def test_the_first_run_of_a_graph_changes_nothing_for_others():
    from tensorflow.python.eager import context

    before = context.context().function_call_options
    values, x = Values([tf.ones((4, 4))]), tf.ones((4, 4))
    program = backend.load(backend.trace(lambda v, x: tf.nn.relu(x @ v[0] + 1.0), values, [x], False))
    np.testing.assert_array_equal(program(values, [x]), np.full((4, 4), 5.0))
    assert context.context().function_call_options is before
    with backend._optimised_once():
        options = context.context().function_call_options.config_proto_serialized
    rewrites = tf.compat.v1.ConfigProto.FromString(options).graph_options.rewrite_options
    assert (rewrites.remapping, rewrites.layout_optimizer) == (rewrites.ON, rewrites.OFF)
    assert rewrites.memory_optimization == rewrites.NO_MEM_OPT


def test_another_version_without_that_setting_runs_all_the_same(monkeypatch):
    monkeypatch.setattr(backend.context, "FunctionCallOptions", None)
    backend._limited.cache_clear()
    values, x = Values([tf.ones(2)]), tf.ones(2)
    program = backend.load(backend.trace(lambda v, x: v[0] + x, values, [x], False))
    np.testing.assert_array_equal(program(values, [x]), [2.0, 2.0])


LEAN = """
import sys
from kerasdiff.runtime.tf_setup import import_tensorflow
import_tensorflow()
assert "tensorflow" in sys.modules
print(*sorted({"jax", "keras", "matplotlib", "grain"} & set(sys.modules)))
import matplotlib.pyplot, jax, keras
import tensorflow as tf
import_tensorflow()
assert keras.backend.backend() == "tensorflow"
assert tf.keras.Model is keras.Model
"""


def test_tensorflow_is_imported_without_what_drawing_does_not_need():
    run = subprocess.run([sys.executable, "-c", LEAN], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
