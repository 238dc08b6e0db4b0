"""Compiled code, kept on disk.

    @kept(**FAST)                        large parts that many kernels have in common
    @kept(signature, nogil=True, …)      a kernel, which Python calls; it is compiled at once
    @kept_callback(signature, …)         likewise, called by its address

numba's own cache looks at the source of a function's own file, but what it keeps contains all that the function
inlines; and processes that compile two variants of a function at the same time can be left with one of them under both
names. So the key has all sources of this package in it, and who reads or writes is alone. Whatever is wrong with a file
or the disk, code is compiled again; numba's cache would raise.
"""

from __future__ import annotations

import contextlib
import fcntl
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

from numba import njit
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.core.serialize import dumps
from numba.core.sigutils import normalize_signature

from octavo.config import KV_SCALE_BYTES
from octavo.kernels import kv_rows
from octavo.kernels.cpu import products

_Function = Callable[..., None]

log = logging.getLogger(__name__)


def kept(signature: Any = None, **options: Any) -> Callable[[_Function], Any]:
    """`numba.njit` with these options, and with a cache on disk."""

    def decorate(function: _Function) -> Any:
        dispatcher = njit(**options)(function)
        dispatcher._cache = _Cache(function, options)
        if signature is not None:
            dispatcher.compile(signature)
            dispatcher.disable_compile()
        return dispatcher

    return decorate


def kept_callback(signature: Any, **options: Any) -> Callable[[_Function], Any]:
    """`numba.cfunc` with these options, and with a cache on disk."""

    def decorate(function: _Function) -> Any:
        callback = CFunc(function, normalize_signature(signature), locals={}, options=options)
        callback._cache = _Cache(function, options)
        callback.compile()
        return callback

    return decorate


@cache
def sources() -> tuple[Path, ...]:
    """All that compiled code of this package can come from."""
    return (*sorted(Path(__file__).parent.glob("*.py")), Path(kv_rows.__file__))


@cache
def _version() -> tuple[int, str, int]:
    return crc32(b"".join(path.read_bytes() for path in sources())), products.CHOSEN, KV_SCALE_BYTES


class _Cache(FunctionCache):
    def __init__(self, function: _Function, options: dict[str, Any]) -> None:
        super().__init__(function)
        # The others are sets of flags, in the source.
        self._options = sorted(item for item in options.items() if isinstance(item[1], bool))

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        # numba would pickle what a closure has captured, and compiled functions are pickled with an id that is new in
        # each process.
        return sig, codegen.magic_tuple(), _version(), tuple(self._options), _captured(self._py_func)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            with self._alone():
                return super().load_overload(sig, target_context)
        except Exception as error:  # of a file that was cut short, unpickling may raise anything
            log.warning("compiled code in %s cannot be read and is compiled again: %r", self.cache_path, error)
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            with self._alone():
                super().save_overload(sig, data)
        except OSError as error:
            log.warning("compiled code cannot be kept in %s and will be compiled again: %s", self.cache_path, error)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        folder = Path(self.cache_path)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "octavo.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _captured(function: _Function) -> tuple[Any, ...]:
    return tuple(_identity(cell.cell_contents) for cell in function.__closure__ or ())


def _identity(value: Any) -> Any:
    """The same in every process, and different for what is compiled differently."""
    function = getattr(value, "__wrapped__", value)
    if inspect.isfunction(function):
        return function.__module__, function.__qualname__, _captured(function)
    return dumps(value)
