"""What counts as out of memory: texts that people met, and errors that the libraries really raise."""

from __future__ import annotations

import builtins
import errno
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasdiff.errors import NonFiniteError, OutOfMemoryError, RequestError
from kerasdiff.runtime import backend
from kerasdiff.runtime.oom import first_line, is_out_of_memory
from kerasdiff.runtime.values import Values

# More bytes than a processor can address, so that it fails at once and takes nothing.
SIDE = 2**24


class XlaRuntimeError(RuntimeError):
    """As JAX's, by its name and module."""


XlaRuntimeError.__module__ = "jaxlib.xla_extension"

MEMORY = [
    # keras-team/keras#9643
    (
        "ResourceExhaustedError",
        "OOM when allocating tensor with shape[128,128,109,109] and type float on "
        "/job:localhost/replica:0/task:0/device:GPU:1 by allocator GPU_1_bfc\n\t [[Node: replica_1/xception]]",
    ),
    # faustomorales/keras-ocr#195
    ("ResourceExhaustedError", "failed to allocate memory [Op:AddV2]"),
    # NVIDIA/DeepLearningExamples#405
    (
        "ResourceExhaustedError",
        "2 root error(s) found.\n  (0) Resource exhausted: Out of memory while trying to allocate 68852648264 bytes.\n"
        "         [[{{node cluster_0_1/xla_run}}]]",
    ),
    # tensorflow/tensorflow#38414: a MemoryError inside of a tf.py_function
    ("ResourceExhaustedError", "MemoryError: Unable to allocate"),
    # tensorflow/tpu#385
    (
        "ResourceExhaustedError",
        "Compilation failure: Ran out of memory in memory space hbm. Used 8.38G of 8.00G hbm. "
        "Exceeded hbm capacity by 385.25M.",
    ),
    # tensorflow/tensorflow#60607
    (
        "InternalError",
        "Graph execution error:\n\nNode: 'StatefulPartitionedCall'\nFailed to load in-memory CUBIN: "
        "CUDA_ERROR_OUT_OF_MEMORY: out of memory\n\t [[{{node StatefulPartitionedCall}}]]",
    ),
    # tensorflow/tensorflow#60401
    (
        "InternalError",
        "Failed copying input tensor from /job:localhost/replica:0/task:0/device:CPU:0 to "
        "/job:localhost/replica:0/task:0/device:GPU:0 in order to run _EagerConst: Dst tensor is not initialized.",
    ),
    # tensorflow/serving#730
    (
        "InternalError",
        "WhereOp: Could not launch cub::DeviceReduce::Sum to count number of true / nonzero indices. "
        "temp_storage_bytes: 1, status: out of memory",
    ),
    # clearml/clearml-fractional-gpu#4: CUBLAS_STATUS_ALLOC_FAILED in the words of cublasGetStatusString
    ("InternalError", "the resource allocation failed"),
    # openxla/xla, xla/stream_executor/cuda/cuda_solver_context.cc
    ("InternalError", "cuSolver allocation failed"),
    # deepfakes/faceswap#1354
    (
        "NotFoundError",
        "No algorithm worked!  Error messages:\n  Profiling failure on CUDNN engine 1#TC: RESOURCE_EXHAUSTED: Out of "
        "memory while trying to allocate 95420720 bytes.",
    ),
    # tensorflow/tensorflow#60713
    (
        "NotFoundError",
        "No algorithm worked!  Error messages:\n  Profiling failure on CUDNN engine eng11{}: UNKNOWN: "
        "CUDNN_STATUS_ALLOC_FAILED\nin tensorflow/compiler/xla/stream_executor/cuda/cuda_dnn.cc(5333): 'status'",
    ),
    # tensorflow/tensorflow, tensorflow/core/kernels/mkl/mkl_conv_grad_input_ops.cc, on somebody's laptop
    (
        "AbortedError",
        "Operation received an exception:Status: 1, message: could not create a primitive, in file "
        "tensorflow/core/kernels/mkl/mkl_conv_grad_input_ops.cc:545",
    ),
    # google-deepmind/alphafold#1023
    ("XlaRuntimeError", "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 7406166528 bytes."),
    # ecmwf-lab/ai-models-graphcast#18
    (
        "XlaRuntimeError",
        "RESOURCE_EXHAUSTED: Failed to allocate request for 2.99GiB (3206250496B) on device ordinal 0",
    ),
    # google-deepmind/gemma#85
    (
        "XlaRuntimeError",
        "RESOURCE_EXHAUSTED: Error allocating device buffer: Attempting to allocate 15.65G. That was not possible. "
        "There are 11.08G free.; (0x0x0_HBM0)",
    ),
    # octo-models/octo#22
    ("XlaRuntimeError", "INTERNAL: Failed to allocate 98697216 bytes for new constant"),
    # LargeWorldModel/LWM#60
    (
        "XlaRuntimeError",
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 21.95G of "
        "15.48G hbm.\n Exceeded hbm capacity by 6.47G.",
    ),
    # google-research/multinerf#2
    (
        "XlaRuntimeError",
        "UNKNOWN: Failed to determine best cudnn convolution algorithm for:\n%cudnn-conv\n\nOriginal error: INTERNAL: "
        "All algorithms tried for %cudnn-conv failed.  Per-algorithm errors:\n  Profiling failure on cuDNN engine "
        "eng1{k2=4,k3=0}: UNKNOWN: CUDNN_STATUS_ALLOC_FAILED",
    ),
    # openxla/xla, xla/stream_executor/integrations/tf_allocator_adapter.cc
    ("XlaRuntimeError", "RESOURCE_EXHAUSTED: Out of host memory while trying to allocate 4096 bytes."),
    # tensorflow/tensorflow#63761
    (
        "MemoryError",
        "Unable to allocate 115. TiB for an array with shape (3983360, 3983360) and data type float64",
    ),
    ("MemoryError", "std::bad_alloc"),  # what pybind11 makes of a C++ exception
    ("MemoryError", ""),
    # openvinotoolkit/openvino#33422, #34345; the last one seen with a bounded address space in OpenVINO 2026.4
    (
        "RuntimeError",
        "Exception from src/inference/src/cpp/infer_request.cpp:223:\nException from src/plugins/intel_cpu/src/"
        "memory_desc/cpu_memory.cpp:93:\nFailed to allocate 134217728 bytes of memory\n",
    ),
    ("RuntimeError", "Exception from src/inference/src/cpp/core.cpp:109:\nbad allocation\n"),
    (
        "RuntimeError",
        "Exception from src/inference/src/cpp/core.cpp:117:\nException from src/inference/src/dev/plugin.cpp:54:\n"
        "can't alloc\n\n",
    ),
    # Seen with a bounded address space in TensorFlow 2.21: Keras's words around those of the lost exception.
    ("SystemError", "Exception encountered when calling GroupNorm.call().\n\nerror return without exception set\n"),
    ("OSError", f"[Errno {errno.ENOMEM}] {os.strerror(errno.ENOMEM)}"),
    # yassouali/pytorch-segmentation#118: the paging file is too small
    ("OSError", "[WinError 1455] 页面文件太小"),
    # tensorflow/tensorflow#87226
    (
        "ImportError",
        "DLL load failed while importing _pywrap_tensorflow_internal: The paging file is too small for this operation "
        "to complete.",
    ),
]

NOT_MEMORY = [
    # Classes that often mean memory.
    # AaronJny/lotto#2
    (
        "ResourceExhaustedError",
        "checkpoints/part-00000-of-00001.data-00000-of-00001.tempstate4953384194912554988; No space left on device",
    ),
    # keras-team/keras-tuner#390
    ("ResourceExhaustedError", "disk quota exceeded [Op:SaveV2]"),
    # tensorflow/tensorflow, third_party/xla/xla/tsl/platform/errors.cc: EMFILE
    ("ResourceExhaustedError", "stage.pb; Too many open files"),
    # openxla/xla#47192: what one core of a GPU has, whatever the batch
    (
        "XlaRuntimeError",
        "RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 131072, available: 101376",
    ),
    # openxla/xla, xla/stream_executor/cuda/ptx_compiler_helpers_test.cc
    (
        "XlaRuntimeError",
        "INTERNAL: ptxas fatal   : (C7600) Register allocation failed with register count of '64'. Compile the program "
        "with a higher register target",
    ),
    # Libraries that cannot start or do not match: tensorflow/tensorflow#60530
    (
        "InternalError",
        "Failed to load in-memory CUBIN: CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image is available for execution on "
        "the device",
    ),
    # NVlabs/sionna#247; jax-ml/jax#16901 has the cause, another version of cuDNN
    ("FailedPreconditionError", "DNN library initialization failed. Look at the errors above for more details."),
    # tensorflow/tensorflow#24828
    (
        "UnknownError",
        "Failed to get convolution algorithm. This is probably because cuDNN failed to initialize, so try looking to "
        "see if a warning log message was printed above.",
    ),
    # tensorflow/tensorflow#43174
    ("UnknownError", "Fail to find the dnn implementation."),
    # tensorflow/tensorflow#44832
    ("InternalError", "Blas xGEMM launch failed : a.shape=[1,20000,3], b.shape=[1,3,20000], m=20000, n=20000, k=3"),
    # ray-project/ray#34446
    ("InternalError", "Attempting to perform BLAS operation using StreamExecutor without BLAS support"),
    # tensorflow/tensorflow#43174: a picture with another number of channels than the model
    ("NotFoundError", "No algorithm worked!"),
    # jax-ml/jax#12461: cuDNN is not found
    (
        "XlaRuntimeError",
        "UNKNOWN: CUDNN_STATUS_EXECUTION_FAILED\nin external/org_tensorflow/tensorflow/stream_executor/cuda/cuda_dnn.cc"
        "(4023): 'cudnnConvolutionForward( cudnn.handle(), alpha, scratch_memory.opaque(), scratch_memory.size())'",
    ),
    # patrick-kidger/equinox#1166
    (
        "XlaRuntimeError",
        "INTERNAL: All algorithms tried for (f32[1,2,10]{2,1,0}, u8[0]{0}) custom-call failed. Falling back to default "
        "algorithm.  Per-algorithm errors:\n  Profiling failure on cuDNN engine eng0{}: UNKNOWN: <unknown cudnn "
        "status: 5003>",
    ),
    # oneDNN: invalid arguments (tensorflow/tensorflow#113188), unimplemented (tensorflow/tensorflow#23391)
    (
        "AbortedError",
        "Operation received an exception:Status: 2, message: could not create a primitive descriptor for the "
        "convolution forward propagation primitive",
    ),
    (
        "AbortedError",
        "Operation received an exception:Status: 5, message: could not create a eltwise forward primitive descriptor, "
        "in file tensorflow/core/kernels/mkl_relu_op.cc:457",
    ),
    ("OSError", f"[Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}"),
    ("FileNotFoundError", "[Errno 2] No such file or directory: 'out of memory.png'"),
    # tensorflow/tensorflow#39007
    (
        "ImportError",
        "DLL load failed while importing _pywrap_tensorflow_internal: The specified module could not be found.",
    ),
    # Other libraries' and everybody's classes say nothing, whatever the text.
    ("ValueError", "out of memory"),
    ("RuntimeError", "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4 bytes."),
    ("RuntimeError", "Exception from src/inference/src/cpp/core.cpp:117:\n[CPU] could not create a primitive\n"),
    ("TypeError", "failed to allocate"),
]


def brief(text):
    return text[:20]


def made(name, text):
    """An error of a class by name."""
    if hasattr(tf.errors, name):
        return getattr(tf.errors, name)(None, None, text)
    kind = XlaRuntimeError if name == "XlaRuntimeError" else getattr(builtins, name)
    return kind(text)


def failure(function, *arguments):
    """What a call raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        function(*arguments)
    return caught.value


def too_much(column):
    """(SIDE, 1) to a sum over (SIDE, SIDE)."""
    return tf.reduce_sum(tf.exp(tf.matmul(column, column, transpose_b=True)))


class Greedy(keras.layers.Layer):
    """A layer that wants more than there is."""

    def __init__(self, take):
        super().__init__()
        self._take = take

    def call(self, x):
        return x + self._take()


@pytest.mark.parametrize(("name", "text"), MEMORY, ids=brief)
def test_what_means_memory(name, text):
    assert is_out_of_memory(made(name, text))


@pytest.mark.parametrize(("name", "text"), NOT_MEMORY, ids=brief)
def test_what_does_not(name, text):
    assert not is_out_of_memory(made(name, text))


@pytest.mark.parametrize("name", ["OpError", "ResourceExhaustedError", "JaxRuntimeError", "MemoryError", "OSError"])
def test_classes_of_other_modules_do_not(name):
    error = type(name, (Exception,), {"__module__": "somewhere"})("Out of memory: cannot allocate memory")
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [OutOfMemoryError("out of memory"), RequestError("out of memory"), NonFiniteError("x"), KeyboardInterrupt()],
)
def test_our_own_errors_and_interrupts_do_not(error):
    error.__cause__ = MemoryError()
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("jit_compile", "says"),
    [(False, "OOM when allocating tensor with shape["), (True, "Out of memory while trying to allocate")],
)
def test_what_a_stage_raises(jit_compile, says):
    column = tf.zeros((SIDE, 1))
    program = backend.load(backend.trace(lambda _, x: too_much(x), [], [column], jit_compile))
    # TensorFlow waits ten seconds for somebody to give memory back.
    error = failure(program, Values([]), [column])
    assert is_out_of_memory(error)
    assert first_line(error).startswith(f"ResourceExhaustedError: {says}")


def test_what_openvino_raises():
    openvino, column = backend.of("openvino"), np.zeros((SIDE, 1), "float32")
    program = openvino.load(openvino.trace(lambda _, x: too_much(x), [], [column], False))
    error = failure(program, Values([]), [column])
    assert is_out_of_memory(error)
    assert first_line(error) == "RuntimeError: std::bad_alloc"


@pytest.mark.parametrize("shape", [(2**40, 2**20), (2**50,)])
def test_what_numpy_raises(shape):
    error = failure(np.empty, shape, "uint8")
    assert is_out_of_memory(error)
    assert "MemoryError: Unable to allocate 1.00 " in first_line(error)


def test_what_tensorflow_and_keras_raise_for_wrong_shapes_is_not_memory():
    product = tf.function(tf.matmul)
    square = tf.zeros((2, 3))
    assert not is_out_of_memory(failure(tf.matmul, square, square))
    assert not is_out_of_memory(failure(product, square, square))
    assert not is_out_of_memory(failure(keras.layers.Conv2D(3, 3), square))


def test_what_keras_makes_of_an_error_in_a_layer():
    def take():
        raise made("ResourceExhaustedError", "failed to allocate memory [Op:Mul] name: ")

    error = failure(Greedy(take), tf.zeros(1))
    assert str(error).startswith("Exception encountered when calling Greedy.call()")
    assert is_out_of_memory(error)
    assert first_line(error) == "ResourceExhaustedError: failed to allocate memory [Op:Mul] name:"


def test_keras_hides_what_numpy_raises_in_a_layer():
    error = failure(Greedy(lambda: np.empty(2**60, "uint8")), tf.zeros(1))
    assert type(error) is RuntimeError
    assert "allocate" not in str(error)
    assert is_out_of_memory(error)
    assert "MemoryError: Unable to allocate 1.00 EiB" in first_line(error)


def test_jax_raises_it_too_and_nothing_imports_a_backend():
    script = """
import sys
from kerasdiff.runtime.oom import first_line, is_out_of_memory
assert {"jax", "keras", "tensorflow"}.isdisjoint(sys.modules)
import jax
column = jax.numpy.zeros((2**24, 1))
for run in (lambda x: x @ x.T, jax.jit(lambda x: jax.numpy.exp(x @ x.T).sum(0))):
    try:
        run(column).block_until_ready()
    except Exception as error:
        print(is_out_of_memory(error), first_line(error))
try:
    jax.jit(lambda x: jax.numpy.dot(x, x))(column)
except Exception as error:
    print(is_out_of_memory(error), first_line(error))
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["True", "True", "False"]
    assert lines[0].startswith("True JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating")


def test_a_cause_counts_and_what_was_being_handled_does_not():
    try:
        try:
            raise MemoryError("std::bad_alloc")
        except MemoryError as error:
            raise SystemError("a function returned a result with an exception set") from error
    except SystemError as error:
        caused = error
    try:
        try:
            raise MemoryError("std::bad_alloc")
        except MemoryError:
            raise ValueError("the second attempt is wrong")  # noqa: B904
    except ValueError as error:
        meanwhile = error
    assert is_out_of_memory(caused)
    assert first_line(caused) == "MemoryError: std::bad_alloc"
    assert not is_out_of_memory(meanwhile)
    assert first_line(meanwhile) == "ValueError: the second attempt is wrong"


def test_an_error_that_is_its_own_cause_ends():
    error = ValueError("x")
    error.__cause__ = error
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "MemoryError"),
        (ValueError("\n first\nsecond"), "ValueError: first"),
        (
            made(
                "ResourceExhaustedError",
                "{{function_node __wrapped__Mul_device_/job:localhost/replica:0/task:0/device:GPU:0}} failed to "
                "allocate memory [Op:Mul] name: ",
            ),
            "ResourceExhaustedError: failed to allocate memory [Op:Mul] name:",
        ),
        (
            made(
                "InvalidArgumentError",
                "Graph execution error:\n\nDetected at node a defined at (most recent call last):\n"
                '  File "a.py", line 1, in <module>\n\n  File "b.py", line 2, in f\n\n'
                "Incompatible shapes: [2] vs. [3]\n\t [[{{node a}}]] [Op:__inference_f_9]",
            ),
            "InvalidArgumentError: Incompatible shapes: [2] vs. [3]",
        ),
        (
            made("InternalError", "2 root error(s) found.\n  (0) INTERNAL: it  broke\n\t [[{{node a}}]]\n  (1) ..."),
            "InternalError: INTERNAL: it broke",
        ),
        (
            made(
                "NotFoundError",
                "No algorithm worked!  Error messages:\n  Profiling failure on CUDNN engine 1: RESOURCE_EXHAUSTED: Out "
                "of memory while trying to allocate 8 bytes.",
            ),
            "NotFoundError: Profiling failure on CUDNN engine 1: RESOURCE_EXHAUSTED: Out of memory while trying to "
            "allocate 8 bytes.",
        ),
        (ValueError("x" * 10_000), "ValueError: " + "x" * 288),
    ],
)
def test_the_line_that_says_most(error, line):
    assert first_line(error) == line
