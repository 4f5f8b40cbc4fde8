"""Files of strangers in PyTorch's forms, each of which must be refused: name -> content."""

from __future__ import annotations

import io
import pickle as python_pickle
import re
import struct
import zipfile
import zlib

from torch_pieces import (
    EIGHT,
    GOOD,
    LEGACY,
    ORDERED,
    archive,
    call,
    legacy,
    mapping,
    named,
    number,
    pickle,
    saved,
    storage,
    tensor,
    text,
    tuple_of,
)

TOUCH = text("touch hacked")
CODE = text("open('hacked', 'w')")
# What runs something, in the standard library or in what machines that read such files have; and what published ways
# past scanners and past weights_only were built of.
NAMES = re.findall(
    r"\S+",
    """
os.system posix.system nt.system os.popen os.execv os.spawnlp os.remove os.putenv subprocess.Popen subprocess.call
subprocess.check_output subprocess.getoutput builtins.eval builtins.exec builtins.compile builtins.getattr
builtins.__import__ builtins.open builtins.apply builtins.globals builtins.breakpoint builtins.input builtins.type
builtins.map builtins.super builtins.setattr builtins.vars __builtin__.eval __builtin__.exec __builtin__.getattr
__builtin__.execfile __builtin__.file runpy.run_path runpy._run_code code.interact code.InteractiveInterpreter
codeop.compile_command pdb.Pdb pdb.run bdb.Bdb.run cProfile.run profile.run trace.Trace.run timeit.timeit
doctest.debug_script importlib.import_module importlib.machinery.SourceFileLoader imp.load_source
zipimport.zipimporter pip.main pip._internal.main pydoc.locate pydoc.pipepager pkgutil.resolve_name venv.create
ensurepip.bootstrap ctypes.CDLL _ctypes.dlopen pty.spawn commands.getoutput asyncio.create_subprocess_shell
multiprocessing.util.spawnv_passfds socket.create_connection socket.socket urllib.request.urlopen requests.get
requests.api.get httplib.HTTPConnection http.client.HTTPSConnection ftplib.FTP smtplib.SMTP webbrowser.open
shutil.rmtree shutil.copyfile pathlib.Path pathlib.Path.write_text io.open io.FileIO tempfile.NamedTemporaryFile
glob.glob mmap.mmap logging.config.dictConfig pickle.loads _pickle.loads pickle.Unpickler dill.loads cloudpickle.load
joblib.load marshal.loads types.CodeType types.FunctionType copyreg._reconstructor copy_reg._reconstructor
functools.partial functools.reduce operator.attrgetter operator.methodcaller operator.itemgetter _operator.attrgetter
itertools.starmap collections.namedtuple collections.UserDict collections.abc.Mapping
lib2to3.pgen2.grammar.Grammar.loads lib2to3.pgen2.pgen.ParserGenerator idlelib.autocomplete.AutoComplete.get_entity
idlelib.run.Executive.runcode test.support.script_helper.assert_python_ok unittest.mock._importer sys.exit
sys.setrecursionlimit sys.modules gc.get_objects inspect.getattr_static site.execsitecustomize
distutils.file_util.write_file nturl2path.url2pathname atexit.register signal.signal weakref.finalize threading.Thread
threading.Timer ssl.get_server_certificate uuid._get_command_stdout _osx_support._find_build_tool
_aix_support._read_cmd_output _pyrepl.pager.pipe_pager posixpath.exists torch.load torch.jit.load
torch.jit.unsupported_tensor_ops.execWrapper torch.hub.load torch.hub.load_state_dict_from_url
torch.storage._load_from_bytes torch.serialization.load torch.utils.data.datapipes.utils.decoder.basichandlers
torch.utils._config_module.load_config torch.utils.collect_env.run torch._dynamo.guards.GuardBuilder.get
torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression torch.utils.bottleneck.__main__.run_cprofile
torch.utils.cpp_extension.load_inline torch._inductor.codecache.compile_file torch.distributed.rpc.rpc_sync
torch.testing._internal.common_utils.run_tests torch.from_file torch.FloatStorage.from_file
torch.UntypedStorage.from_file torch.ops.load_library torch.classes.load_library torch._C._jit_pass_lint
torch.nn.Module torch.nn.modules.linear.Linear torch._utils._rebuild_qtensor torch._utils._rebuild_sparse_tensor
torch._utils._rebuild_sparse_csr_tensor torch._utils._rebuild_device_tensor_from_numpy
torch._utils._rebuild_device_tensor_from_cpu_tensor torch._utils._rebuild_meta_tensor_no_storage
torch._utils._rebuild_parameter_with_state torch._utils._rebuild_wrapper_subclass torch._tensor._rebuild_from_type_v2
torch._tensor._rebuild_from_type torch._subclasses.fake_tensor.FakeTensor torch.Tensor torch.tensor torch.empty
torch.zeros torch.nn.parameter.Parameter torch.nn.Parameter torch.ComplexFloatStorage torch.QInt8Storage
torch.storage.TypedStorage torch.FloatStorage.__reduce__ torch._utils._rebuild_tensor_v2.__globals__
torch._utils._rebuild_tensor_v2.__call__ torch._utils.importlib.import_module torch._utils.sys.modules torch.os.system
numpy.load numpy.loads numpy.core.multiarray.load numpy.f2py.crackfortran.getlincoef
numpy.f2py.crackfortran._eval_length numpy.testing._private.utils.runstring numpy.distutils.exec_command.exec_command
numpy.fromfile numpy.memmap numpy.ctypeslib.load_library numpy.lib.npyio.load scipy.io.loadmat pandas.read_pickle
pandas.eval sklearn.externals.joblib.load transformers.pipelines.pipeline tensorflow.io.read_file
keras.models.load_model safetensors.torch.load_file collections.OrderedDict.__init__ collections.OrderedDict.__class__
collections..OrderedDict os .system __main__.hacked kerasdiff.convert.convert argparse.FileType
argparse.Namespace.__init__
""",
)
# What every pickle may have, but a file of tensors does not need.
OPERATIONS = {
    **{f"{name}": getattr(python_pickle, name) for name in dir(python_pickle) if name.isupper() and len(name) > 2},
}
_NEEDED = b"(cR\x81bQqrhj})]t\x85\x86\x87aesuN\x88\x89JKM\x8aGXU.\x80"


def _of_names() -> dict[str, bytes]:
    made = {}
    for path in NAMES:
        argument = CODE if "eval" in path or "exec" in path else TOUCH
        made[f"call of {path}"] = saved(pickle(mapping({"a": call(path, argument)})))
        module, _, name = path.rpartition(".")
        stacked = text(module) + text(name) + b"\x93" + tuple_of(argument) + b"R"
        if len(made) < 120:
            made[f"old call of {path}"] = legacy(pickle(call(path, argument)))
            made[f"stacked call of {path}"] = saved(pickle(mapping({"a": stacked})))
            made[f"object of {path}"] = saved(pickle(named(path) + tuple_of() + b"\x81" + mapping({}) + b"b"))
    return made


def _of_operations() -> dict[str, bytes]:
    made = {}
    for name, code in OPERATIONS.items():
        if isinstance(code, bytes) and len(code) == 1 and code not in _NEEDED:
            for kind, before in (("on a call", named("posix.system") + tuple_of(TOUCH)), ("on a value", text("a") * 3)):
                made[f"{name} {kind}"] = saved(pickle(before + code + b"\1\0\0\0\0\0\0\0posix\nsystem\n" + mapping({})))
    made["INST"] = saved(pickle(b"(" + TOUCH + b"iposix\nsystem\n"))
    made["OBJ"] = saved(pickle(b"(" + named("posix.system") + TOUCH + b"o"))
    made["PERSID"] = saved(pickle(b"Pposix.system\n"))
    made["protocol 0"] = saved(b"cposix\nsystem\n(S'touch hacked'\ntR.")
    for protocol in (0, 1, 3, 4, 5, 255):
        made[f"protocol {protocol} said"] = saved(bytes([0x80, protocol]) + GOOD[2:])
    for code in range(256):
        made.setdefault(f"byte {code}", saved(pickle(bytes([code]) + mapping({"a": b"N"}))))
    for code in b"KN\x88)]}.\x89":  # these only put a value there, which is then left over
        made.pop(f"byte {code}", None)
        made[f"left over {code}"] = saved(pickle(bytes([code]) + b"\1" * (code == ord("K")) + mapping({"a": b"N"})))
    return made


def _of_machine() -> dict[str, bytes]:
    """Tricks with the stack, marks and the memo."""
    body = {
        "nothing on the stack": b"",
        "two values": mapping({}) + b"N",
        "a mark left": mapping({}) + b"(",
        "pop below": b"R",
        "pop below a mark": text("a") + b"(\x85",
        "tuple below a mark": text("a") + b"(N\x87",
        "no mark": b"t",
        "no mark for items": b"}u",
        "memo of nothing": b"h\0",
        "large memo of nothing": b"j\xff\xff\xff\xff",
        "put of nothing": b"q\0",
        "put below a mark": b"N(q\0",
        "a memo of 4 GB": b"}r\xff\xff\xff\xff" + b"j\xfe\xff\xff\xff",
        "odd items": b"}(" + text("a") + b"u",
        "item of a list": b"]" + text("a") + b"Ns",
        "item of a tuple": b")" + text("a") + b"Ns",
        "item of a text": text("a") + text("a") + b"Ns",
        "item of a tensor": tensor() + number(0) + number(1) + b"s",
        "items of a tensor": tensor() + b"(" + number(0) + number(1) + b"u",
        "item of a storage": storage() + number(0) + number(1) + b"s",
        "item of a name": named("torch.FloatStorage") + text("from_file") + text("a") + b"s",
        "append to a mapping": b"}Na",
        "append to a text": text("a") + b"Na",
        "append to a name": named("torch._utils._rebuild_tensor_v2") + b"Na",
        "appends to a tensor": tensor() + b"(Ne",
        "a key of a list": b"}]Ns",
        "a key of a tuple": b"})Ns",
        "a key of a mapping": b"}}Ns",
        "a key of nothing": b"}NNs",
        "a key of a tensor": b"}" + tensor() + b"Ns",
        "a key twice": mapping([(text("a"), tensor()), (text("a"), tensor())]),
        "a key twice, later": mapping({"a": tensor()}) + text("a") + b"Ns",
        "call of a text": text("posix.system") + tuple_of(TOUCH) + b"R",
        "call of a tensor": tensor() + b")R",
        "call of a mapping": b"})R",
        "call of a type": call("torch.FloatStorage", number(2**40)),
        "call of a storage": storage() + b")R",
        "call of a number type": call("torch.float32"),
        "call of parameters": call("torch.nn.modules.container.ParameterDict"),
        "call without a tuple": named("collections.OrderedDict") + b"]R",
        "object of a function": named("torch._utils._rebuild_tensor_v2") + b")\x81",
        "object of a type": named("torch.FloatStorage") + b")\x81",
        "object of an OrderedDict": named("collections.OrderedDict") + b")\x81",
        "object of a text": text("a") + b")\x81",
        "object with a list": named("argparse.Namespace") + b"]\x81",
        "state of a mapping": b"}}b",
        "state of a tensor": tensor() + mapping({"a": b"N"}) + b"b",
        "state of a name": named("collections.OrderedDict") + mapping({"__init__": b"N"}) + b"b",
        "state of a storage": storage() + tuple_of(number(1)) + b"b",
        "state of parameters": named("torch.nn.modules.container.ParameterDict") + b")\x81" + mapping({}) + b"b",
        "pairs that are none": call("collections.OrderedDict", b"](" + text("ab") + b"e"),
        "pairs of three": call("collections.OrderedDict", b"](" + tuple_of(b"N", b"N", b"N") + b"e"),
        "pairs of a mapping": call("collections.OrderedDict", mapping({"a": b"N"})),
        "pairs that are too many": call("collections.OrderedDict", b"]", b"]"),
        "a long number": b"\x8a\x09" + bytes(9),
        "a number of 255 bytes": b"\x8a\xff" + b"\xff" * 255,
        "a text of 4 GB": b"X\xff\xff\xff\xffa",
        "a text that is no UTF-8": b"X\1\0\0\0\xff",
        "a name without an end": b"cos",
        "a name without its second half": b"cos\n",
        "a name of 1 MB": b"c" + b"a" * 2**20 + b"\nb\n",
        "a name of spaces": b"c \n \n",
        "an empty name": b"c\n\n",
        "a name with a null": b"cos\0\nsystem\n",
        "a name in another script": "c\u043es\nsystem\n".encode(),
        "no mapping": tensor(),
        "a list": b"](" + tensor() + b"e",
        "a text": text("a"),
        "in itself": mapping({}) + b"q\0" + text("a") + b"h\0s" + text("b") + b"h\0s",
        "doubled 40 times": mapping({"a": b"N"}) + b"q\0" + (b"}" + text("a") + b"h\0s" + text("b") + b"h\0sq\0") * 40,
        "wide and deep": b"}q\0(" + b"".join(text(str(index)) + b"h\0" for index in range(2000)) + b"u",
        "deep mappings": mapping({"a": b"N"}) + b"q\0" + (b"}" + text("a") + b"h\0sq\0") * 20_000,
        "a long name": mapping({"a" * 5000: tensor()}),
        "a dotted name twice": mapping({"a.b": tensor(), "a": mapping({"b": tensor()})}),
    }
    made = {name: saved(pickle(value)) for name, value in body.items()}
    made["deep tuples"] = saved(pickle(b")" + b"\x85" * 499_000))
    made["deep lists"] = saved(pickle(b"]q\0" + b"]h\0aq\0" * 150_000))
    made["doubled tuples"] = saved(pickle(b")q\0" + b"h\0h\0\x86q\0" * 1000))
    made["a key of doubled tuples"] = saved(pickle(b"})q\0" + b"h\0h\0\x86q\0" * 100 + b"Ns"))
    made["many operations"] = saved(pickle(b"N" * 2_000_000))
    made["many marks"] = saved(pickle(b"(" * 2_000_000))
    made["many mappings"] = saved(pickle(b"}" * 2_000_000))
    made["many memos"] = saved(pickle(b"N" + b"".join(b"r" + struct.pack("<I", index) for index in range(490_000))))
    made["many objects"] = saved(pickle(b"](" + (named("argparse.Namespace") + b")\x81") * 300_000 + b"e"))
    made["many tensors"] = saved(
        pickle(tensor() + b"q\0" + b"}(" + b"".join(text(f"{n}") + b"h\0" for n in range(100_001)) + b"u\x86")
    )
    made["named 100,001 times"] = saved(
        pickle(b"}(" + text("x") + tensor() + b"q\0" + b"".join(text(f"{n}") + b"h\0" for n in range(100_001)) + b"u")
    )
    made["a pickle of 17 MB"] = saved(pickle(text("a" * 17 * 2**20)))
    made["something behind it"] = saved(GOOD + b"N")
    made["two pickles"] = saved(GOOD + GOOD)
    made["no pickle"] = saved(b"")
    made["no end"] = saved(GOOD[:-1])
    made["a pickle's first byte"] = saved(b"\x80")
    return made


def _of_tensors() -> dict[str, bytes]:
    """Views and storages that are not what they say."""
    huge = number(2**62)
    wrong = {
        "before the beginning": tensor(b"J\xff\xff\xff\xff"),
        "beyond the end": tensor(1),
        "far beyond the end": tensor(huge),
        "a huge shape": tensor(shape=(huge, huge), strides=(0, 0)),
        "a huge stride": tensor(strides=(huge, 1)),
        "a large stride": tensor(strides=(5, 1)),
        "a negative stride": tensor(strides=(4, b"J\xff\xff\xff\xff")),
        "a negative shape": tensor(shape=(b"J\xfe\xff\xff\xff", 4)),
        "two negative sides": tensor(shape=(b"J\xfe\xff\xff\xff", b"J\xfc\xff\xff\xff")),
        "a shape of truths": tensor(shape=(b"\x88", b"\x88")),
        "an offset of truth": tensor(b"\x89"),
        "a stride of truth": tensor(strides=(4, b"\x88")),
        "a shape of floats": tensor(shape=(b"G@\0\0\0\0\0\0\0", 4)),
        "a shape of texts": tensor(shape=(text("2"), 4)),
        "a shape of nothing": tensor(shape=(b"N", 4)),
        "fewer strides": tensor(strides=(1,)),
        "more strides": tensor(strides=(4, 1, 1)),
        "17 axes": tensor(shape=(1,) * 17, strides=(1,) * 17),
        "a thousand axes": tensor(shape=(1,) * 1000, strides=(1,) * 1000),
        "stride 0": tensor(shape=(2**20, 2**20), strides=(0, 0)),
        "overlapping rows": tensor(shape=(4, 4), strides=(1, 1)),
        "an empty one that is huge": tensor(shape=(0, huge), strides=(1, 1)),
        "an empty one with two huge sides": tensor(shape=(2**30, 2**30, 0), strides=(1, 1, 1)),
        "an empty one far away": tensor(9, (0,), (1,)),
        "a storage that is a text": tensor(of=text("0")),
        "a storage that is a tensor": tensor(of=tensor()),
        "a storage that is inert": tensor(of=call("numpy.dtype", text("f4"))),
        "a shape that is a list": call(
            "torch._utils._rebuild_tensor_v2", storage(), number(0), b"]", b"]", b"\x89", ORDERED
        ),
        "a shape that is inert": call(
            "torch._utils._rebuild_tensor_v2", storage(), number(0), call("torch.Size", b"]"), b")", b"\x89", ORDERED
        ),
        "too few arguments": tensor(rest=()),
        "too many arguments": tensor(rest=(b"\x89", ORDERED, b"N", b"N", b"N")),
        "v1 with six": tensor(function="torch._utils._rebuild_tensor"),
        "v3 without a type": tensor(function="torch._utils._rebuild_tensor_v3"),
        "v3 of another type": tensor(
            rest=(b"\x89", ORDERED, named("torch.FloatStorage")), function="torch._utils._rebuild_tensor_v3"
        ),
        "v3 of two types": tensor(
            rest=(b"\x89", ORDERED, named("torch.float32")), function="torch._utils._rebuild_tensor_v3"
        ),
        "v3 of a text": tensor(rest=(b"\x89", ORDERED, text("float32")), function="torch._utils._rebuild_tensor_v3"),
        "v2 without a type": tensor(of=storage(kind="torch.storage.UntypedStorage", count=32)),
        "v3 beyond the end": tensor(
            of=storage(kind="torch.storage.UntypedStorage", count=32),
            shape=(2, 5),
            strides=(5, 1),
            rest=(b"\x89", ORDERED, named("torch.float32")),
            function="torch._utils._rebuild_tensor_v3",
        ),
        "hooks": tensor(rest=(b"\x89", mapping({"1": b"N"}))),
        "hooks of a name": tensor(rest=(b"\x89", named("argparse.Namespace"))),
        "metadata": tensor(rest=(b"\x89", ORDERED, mapping({"conj": b"\x88"}))),
        "gradient of a text": tensor(rest=(text("a"), ORDERED)),
        "a parameter of a storage": call("torch._utils._rebuild_parameter", storage(), b"\x88", ORDERED),
        "a parameter of two": call("torch._utils._rebuild_parameter", tensor(), b"\x88"),
        "a parameter with hooks": call("torch._utils._rebuild_parameter", tensor(), b"\x88", mapping({"1": b"N"})),
        "a storage of another type": tensor(of=storage(kind="torch.HalfStorage")),
        "a storage of a number type": tensor(of=storage(kind="torch.float32")),
        "a storage of a class": tensor(of=storage(kind="argparse.Namespace")),
        "a storage that is larger": tensor(of=storage(count=9)),
        "a storage that is smaller": tensor(of=storage(count=7), shape=(1,), strides=(1,)),
        "a huge storage": tensor(of=storage(count=huge)),
        "a storage of truth": tensor(of=storage(count=b"\x88"), shape=(1,), strides=(1,)),
        "a negative storage": tensor(of=storage(count=b"J\xff\xff\xff\xff")),
        "a storage of a float": tensor(of=storage(count=b"G@ \0\0\0\0\0\0")),
        "a storage that is missing": tensor(of=storage("1")),
        "a storage above": tensor(of=storage("../0")),
        "a storage of another folder": tensor(of=storage("/etc/passwd")),
        "a storage's number": tensor(
            of=tuple_of(text("storage"), named("torch.FloatStorage"), number(0), text("cpu"), number(8)) + b"Q"
        ),
        "a part of a storage": tensor(of=storage(rest=tuple_of(text("0"), number(0), number(8)))),
        "a whole model": tuple_of(text("module"), named("argparse.Namespace"), text("f"), text("import os")) + b"Q",
        "a persistent text": text("storage") + b"Q",
        "a persistent tuple of nothing": b")Q",
        "a persistent list": b"]" + b"Q",
        "a persistent file": tuple_of(text("file"), named("torch.FloatStorage"), text("0"), text("cpu"), number(8))
        + b"Q",
    }
    made = {f"tensor {name}": saved(pickle(mapping({"a": value}))) for name, value in wrong.items()}
    made["a storage of two types"] = saved(
        pickle(mapping({"a": tensor(), "b": tensor(of=storage(kind="torch.IntStorage"))}))
    )
    made["a storage of two sizes"] = saved(
        pickle(mapping({"a": tensor(), "b": tensor(of=storage(count=4), shape=(4,), strides=(1,))}))
    )
    # A file of 1 MB whose tensors would be 2 GB.
    million = bytes(2**20)
    shared = tensor(of=storage(count=2**18), shape=(2**18,), strides=(1,))
    made["2,000 tensors of one storage"] = saved(
        pickle(mapping({str(index): shared for index in range(2000)})), {"0": million}
    )
    return made


def _of_archives() -> dict[str, bytes]:
    """Zip files that two readers could read in two ways, or that take more than they seem to."""
    pkl, data = "m/data.pkl", "m/data/0"
    packer = zlib.compressobj(9, wbits=-15)
    packed = packer.compress(GOOD) + packer.flush()
    packer = zlib.compressobj(9, wbits=-15)
    bomb = packer.compress(bytes(2**26)) + packer.flush()
    evil = pickle(call("posix.system", TOUCH))
    good = saved()
    twice = [("m/data.pkl", evil), ("m/data.pkl", GOOD), ("m/data/0", EIGHT)]
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as writer:
        writer.writestr("m/data.pkl", evil)
    usual = {"m/data.pkl": GOOD, "m/data/0": EIGHT}
    end = good[-22:]
    large = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 4, 4, 1, 1)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(good) - 22, 1)

    def changed(record, **values):
        return saved(changes={record: values})

    made = {
        "a name twice": archive(twice),
        "a name twice, otherwise": archive(twice[::-1]),
        "a second root": archive({**usual, "other/data.pkl": evil}),
        "no root": archive({"data.pkl": GOOD, "data/0": EIGHT}),
        "an empty root": archive({"/data.pkl": GOOD, "/data/0": EIGHT}),
        "a root above": archive({"../data.pkl": GOOD, "../data/0": EIGHT}),
        "a root here": archive({"./data.pkl": GOOD, "./data/0": EIGHT}),
        "a name above": archive({**usual, "m/../data.pkl": evil}),
        "a name above, inside": archive({**usual, "m/data/../../etc": evil}),
        "a backslash": archive({**usual, "m\\data.pkl": evil}),
        "an absolute name": archive({**usual, "/etc/passwd": evil}),
        "a folder": archive({**usual, "m/data/": b""}),
        "another case": archive({**usual, "m/DATA.PKL": evil}),
        "a space behind": archive({**usual, "m/data.pkl ": evil}),
        "a null in a name": archive({**usual, "m/data.pkl\0x": evil}),
        "another pickle": archive({**usual, "m/evil.pkl": evil}),
        "TorchScript": archive({**usual, "m/constants.pkl": evil}),
        "TorchScript's code": archive({**usual, "m/code/x.py": b"import os"}),
        "an archive inside": saved(inner.getvalue()),
        "an archive as a storage": archive({**usual, "m/data/1.zip": inner.getvalue()}),
        "no pickle's name": archive({"m/version": b"3\n", "m/data/0": EIGHT}),
        "nothing": archive({}),
        "big-endian": archive({**usual, "m/byteorder": b"big"}),
        "a byteorder of 1 MB": archive({**usual, "m/byteorder": bytes(2**20)}),
        "a storage's name of letters": archive({**usual, "m/data/x": EIGHT}),
        "a prefix": b"\x7fELF" + good,
        "a prefix that is counted": saved(prefix=b"PK\x03\x04" + bytes(60)),
        "something between": saved(between=b"hidden"),
        "a record between": saved(between=b"PK\x03\x04" + bytes(26) + evil),
        "something behind": saved(suffix=b"hidden"),
        "a comment": saved(end={"comment": 6}, suffix=b"hidden"),
        "two ends": good + end,
        "an archive behind": good + good,
        "several disks": saved(end={"disk": 1}),
        "another disk": saved(end={"first": 1}),
        "fewer records here": saved(end={"here": 1}),
        "fewer records": saved(end={"here": 1, "count": 1}),
        "more records": saved(end={"here": 9, "count": 9}),
        "65,535 records": saved(end={"here": 65535, "count": 65535}),
        "a directory elsewhere": saved(end={"begin": 0}),
        "a directory far away": saved(end={"begin": 2**32 - 1}),
        "a huge directory": saved(end={"size": 2**32 - 1}),
        "an empty directory": saved(end={"size": 0}),
        "a large directory without its place": good[:-22] + locator + end,
        "a large directory that is another": good[:-22] + large + locator + end,
        "a large directory of two disks": good[:-22] + large + locator[:-4] + struct.pack("<L", 2) + end,
        "a large directory far away": good[:-22] + large + struct.pack("<4sLQL", b"PK\x06\x07", 0, 2**63, 1) + end,
        "encrypted": changed(pkl, flags=0x1),
        "strongly encrypted": changed(pkl, flags=0x40),
        "with a patch": changed(data, flags=0x20),
        "a hidden directory": changed(pkl, flags=0x2000),
        "reserved flags": changed(data, flags=0x8000),
        "other flags in its own header": changed(pkl, local_flags=0x1),
        "another name in its own header": changed(pkl, local_name=b"m/data.xyz"),
        "a longer name in its own header": changed(pkl, local_name=b"m/data.pkl2"),
        "another method in its own header": changed(pkl, local_method=8),
        "another method": changed(data, method=12),
        "method 99": changed(data, method=99),
        "a compressed storage": archive(
            {"m/data.pkl": GOOD, data: zlib.compress(EIGHT)[2:-4]}, {data: {"method": 8, "plain": EIGHT}}
        ),
        "a storage that says it is compressed": changed(data, method=8),
        "another size in its own header": changed(data, local_size=31),
        "another packed size in its own header": changed(data, local_packed=31),
        "a wrong size": changed(data, size=31),
        "a wrong packed size": changed(data, packed=31),
        "two wrong sizes": changed(data, packed=31, size=31),
        "a huge size": changed(data, packed=2**32 - 2, size=2**32 - 2),
        "a size that is elsewhere": changed(data, packed=2**32 - 1, size=2**32 - 1),
        "a size of 2**63": changed(
            data, packed=2**32 - 1, size=2**32 - 1, extra=struct.pack("<2H2Q", 1, 16, 2**63, 2**63)
        ),
        "an offset of 2**63": changed(data, offset=2**32 - 1, extra=struct.pack("<2HQ", 1, 8, 2**63)),
        "an extra field that lies": changed(data, offset=2**32 - 1, extra=struct.pack("<2HL", 1, 8, 0)),
        "an extra field of 64 kB": changed(data, offset=2**32 - 1, extra=struct.pack("<2H", 1, 65535)),
        "a wrong checksum": changed(pkl, crc=1, local_crc=1),
        "no checksum": changed(pkl, crc=0),
        "another checksum in its own header": changed(pkl, local_crc=1),
        "an overlap": archive(usual, {data: {"offset": 0}}),
        "an offset in the middle": archive(usual, {data: {"offset": 35}}),
        "an offset in the directory": archive(usual, {data: {"offset": len(archive(usual)) - 30}}),
        "an extra field beyond the end": changed(data, local_extra=b"")[: -22 - 46] + end,
        "a record's comment": changed(pkl, comment=b"hidden"),
        "a record on another disk": changed(pkl, disk=1),
        "a name that is no UTF-8": changed(pkl, name=b"m/data\xff.pkl"),
        "sizes behind that are missing": changed(data, flags=0x8),
        "sizes behind that are wrong": changed(data, flags=0x8, behind=struct.pack("<4s3L", b"PK\x07\x08", 1, 32, 32)),
        "sizes behind without a sign": changed(data, flags=0x8, behind=struct.pack("<3L", zlib.crc32(EIGHT), 32, 32)),
        "sizes behind that nobody announced": changed(
            data, behind=struct.pack("<4s3L", b"PK\x07\x08", zlib.crc32(EIGHT), 32, 32)
        ),
        "a packed pickle that is longer": archive({pkl: packed, data: EIGHT}, {pkl: {"method": 8, "plain": GOOD[:-1]}}),
        "a packed pickle that is shorter": archive(
            {pkl: packed, data: EIGHT}, {pkl: {"method": 8, "plain": GOOD + b"."}}
        ),
        "a packed pickle with a rest": archive({pkl: packed + b"x", data: EIGHT}, {pkl: {"method": 8, "plain": GOOD}}),
        "a packed pickle that is none": archive({pkl: bytes(50), data: EIGHT}, {pkl: {"method": 8, "plain": GOOD}}),
        "a bomb": archive({pkl: bomb, data: EIGHT}, {pkl: {"method": 8, "plain": bytes(2**26)}}),
        "a bomb that says it is small": archive({pkl: bomb, data: EIGHT}, {pkl: {"method": 8, "plain": GOOD}}),
        "a bomb as the version": archive(
            {**usual, "m/version": bomb}, {"m/version": {"method": 8, "plain": bytes(2**26)}}
        ),
        "50,001 records": archive({**usual, **{f"m/data/{index}": b"" for index in range(1, 50_001)}}),
        "only the end": end,
        "only an end": b"PK\x03\x04" + bytes(12) + b"PK\x05\x06" + bytes(18),
        "only the first bytes": b"PK\x03\x04",
    }
    for length in range(5, len(good), 23):
        made[f"cut at {length}"] = good[:length]
    return made


def _of_legacy() -> dict[str, bytes]:
    good = legacy()
    made = {
        "another magic number": good.replace(b"l\xfc\x9c", b"l\xfc\x9d"),
        "another version": good.replace(b"M\xe9\x03", b"M\xe8\x03", 1),
        "big-endian": legacy(machine=pickle(mapping({"little_endian": b"\x89"}))),
        "no machine": legacy(machine=pickle(b"N")),
        "a machine that is a call": legacy(machine=pickle(call("posix.system", TOUCH))),
        "a machine with a storage": legacy(machine=pickle(mapping({"little_endian": b"\x88", "a": storage("9")}))),
        "no keys": legacy(keys=pickle(b"]")),
        "another key": legacy(keys=pickle(b"](" + text("1") + b"e")),
        "a key twice": legacy(keys=pickle(b"](" + text("0") * 2 + b"e")),
        "keys that are a call": legacy(keys=pickle(call("posix.system", TOUCH))),
        "keys that are a tuple": legacy(keys=pickle(tuple_of(text("0")))),
        "keys of numbers": legacy(keys=pickle(b"](" + number(0) + b"e")),
        "keys of lists": legacy(keys=pickle(b"](]e")),
        "no storage": legacy(storages=b""),
        "a storage that is cut": legacy(storages=struct.pack("<q", 8) + EIGHT[:-1]),
        "a count that is cut": legacy(storages=bytes(7)),
        "another count": legacy(storages=struct.pack("<q", 7) + EIGHT),
        "a huge count": legacy(storages=struct.pack("<q", 2**62) + EIGHT),
        "a negative count": legacy(storages=struct.pack("<q", -8) + EIGHT),
        "a huge storage": legacy(
            pickle(mapping({"a": tensor(of=storage(count=2**62, rest=b"N"))})), None, struct.pack("<q", 2**62) + EIGHT
        ),
        "something behind": good + b"x",
        "a file behind": good + good,
        "a call": legacy(pickle(mapping({"a": call("posix.system", TOUCH)}))),
        "only the beginning": LEGACY,
        "a plain pickle": pickle(mapping({"a": b"N"})),
        "a plain pickle that is a call": pickle(call("posix.system", TOUCH)),
        "tar": bytes(257) + b"ustar" + bytes(300),
    }
    for length in range(len(LEGACY), len(good), 11):
        made[f"cut at {length}"] = good[:length]
    return {f"old: {name}": content for name, content in made.items()}


def hostile_files() -> dict[str, bytes]:
    """Name -> content."""
    made: dict[str, bytes] = {}
    for part in (_of_names, _of_operations, _of_machine, _of_tensors, _of_archives, _of_legacy):
        for name, content in part().items():
            made[f"{part.__name__[4:]} {name}"] = content
    return made
