"""What the names in a pickle are: those that torch's restricted unpickler loads, and those that run what the file says.

A name is imported when a pickle is loaded without that restriction, and most often called with whatever stands beside
it. What only hands on to another function (``functools.partial``, ``map``) is no danger by itself: the other is named,
too. What reaches things that are not named (``getattr``, a name with a module in its middle) is.
"""

from __future__ import annotations

from safepoint.calls import CALLED
from safepoint.formats.dtypes import BITS, STORAGES

_SCHEMES = ("tensor_affine", "tensor_symmetric", "channel_affine", "channel_symmetric", "channel_affine_float_qparams")
_TENSORS = ("BFloat16", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")

ALLOWED = frozenset(
    {
        *CALLED,
        "torch.Tensor",
        "torch.nn.parameter.Parameter",
        *(f"torch.{dtype}" for dtype in BITS),
        *(f"torch.per_{scheme}" for scheme in _SCHEMES),
        *STORAGES,
        "torch.storage.TypedStorage",
        *(f"torch.{place}{kind}Tensor" for place in ("", "cuda.", "sparse.", "cuda.sparse.") for kind in _TENSORS),
        "torch.BoolTensor",
        "torch.cuda.BoolTensor",
    }
)
"""What ``weights_only=True`` loads by itself."""

_METADATA = "torch.distributed.checkpoint.metadata."
OF_METADATA = frozenset(
    {
        *(f"{_METADATA}{kind}" for kind in ("Metadata", "MetadataIndex", "StorageMeta", "ChunkStorageMetadata")),
        *(f"{_METADATA}{kind}" for kind in ("BytesStorageMetadata", "TensorStorageMetadata", "TensorProperties")),
        f"{_METADATA}_MEM_FORMAT_ENCODING",
        "torch.distributed.checkpoint.filesystem._StorageInfo",
        "pathlib.PosixPath",
        "pathlib._local.PosixPath",
    }
)
"""What the metadata of ``torch.distributed.checkpoint`` names besides, which it unpickles without a restriction."""

OPCODES = frozenset(
    {
        "PROTO", "STOP", "GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID",
        "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING",
        "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
        "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
    }
)  # fmt: skip
"""The opcodes that it knows, as ``pickletools`` calls them."""

_SYSTEM = frozenset({
    "os", "posix", "nt", "sys", "subprocess", "shutil", "pty", "popen2", "commands", "signal", "ctypes", "_ctypes", "cffi",
    "builtins", "__builtin__", "importlib", "_frozen_importlib", "_frozen_importlib_external", "runpy", "socket", "_socket",
})  # fmt: skip
"""Modules with which anything can be done, wherever they stand in a name."""
_MODULES = _SYSTEM - {"builtins", "__builtin__"} | {
    # run programs, or code that is given as text
    "asyncio", "bdb", "codeop", "cProfile", "doctest", "imp", "multiprocessing", "pdb", "pkgutil", "platform", "pydoc",
    "timeit", "zipimport", "zipapp", "ensurepip", "pip", "venv", "idlelib", "distutils", "setuptools", "lib2to3",
    "_osx_support", "_aix_support", "_pyrepl", "webbrowser", "antigravity", "code.interact", "code.InteractiveInterpreter",
    "code.InteractiveConsole", "profile.run", "profile.runctx", "profile.Profile", "trace.Trace", "unittest.mock",
    "logging.config", "torch.hub", "torch.fx", "torch._dynamo", "torch._inductor", "torch.utils.cpp_extension",
    "torch.utils.bottleneck", "torch.utils.collect_env", "torch.multiprocessing", "numpy.f2py", "numpy.distutils",
    "numpy.testing", "pandas.eval", "sympy.sympify", "sympy.core.sympify", "sympy.parsing",
    # unpickle in turn
    "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "copyreg.pickle", "torch.load",
    "torch.serialization.load", "torch.jit", "torch.package", "torch.distributed.rpc", "torch.utils._config_module",
    "numpy.load", "numpy.lib.npyio", "pandas.read_pickle", "pandas.io.pickle",
    # make functions out of code, or reach what is not named
    "types.FunctionType", "types.CodeType", "types.MethodType", "operator", "_operator", "gc",
    # read and write files, or speak to others
    "io.open", "io.open_code", "io.FileIO", "_io.open", "_io.open_code", "_io.FileIO", "fileinput", "tempfile",
    "linecache", "sqlite3", "zipfile", "tarfile", "ftplib", "http", "httplib", "imaplib", "nntplib", "poplib", "smtplib",
    "socketserver", "ssl", "telnetlib", "urllib", "urllib2", "xmlrpc", "requests", "aiohttp", "httpx", "cgi",
    "threading", "_thread",
}  # fmt: skip
_BUILTINS = frozenset({
    "eval", "exec", "execfile", "compile", "open", "file", "getattr", "setattr", "delattr", "__import__", "__build_class__",
    "input", "raw_input", "breakpoint", "globals", "locals", "vars", "apply", "reload", "exit", "quit", "help", "type",
})  # fmt: skip
_NUMBERED = "copyreg.extension "


def is_dangerous(name: str) -> bool:
    """Tell whether what is called ``name`` is known to run what it is given, or to reach whatever it likes."""
    if name in ALLOWED:
        return False
    if name.startswith(_NUMBERED):  # whatever the registry of the process that loads it has there
        return True
    parts = name.split(".")
    if parts[0] in {"builtins", "__builtin__"}:
        return len(parts) != 2 or parts[1] in _BUILTINS  # noqa: PLR2004 - a module and a name
    beginnings = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    return not beginnings.isdisjoint(_MODULES) or any(part in _SYSTEM or part.startswith("__") for part in parts[1:])
