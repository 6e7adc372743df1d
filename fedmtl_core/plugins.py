"""Plug-ins: classes in a user's own file, which the configuration names as `module:Name`.

Plug-ins are imported and run. Only this machine's own configuration can name one; no message from the network can.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from fedmtl_core.errors import ConfigError, FedMTLError

FORM = "module:Name"
_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)

_T = TypeVar("_T")

_importing = threading.Lock()
"""Held while the import system's caches and paths change, which isn't safe in several threads at once."""


def is_reference(text: str) -> bool:
    """Whether a text has the form `module:Name`."""
    return _REFERENCE.fullmatch(text) is not None


def load(key: str, reference: str, base: type[_T]) -> type[_T]:
    """Load the class that a setting names.

    Args:
        key: the setting, for messages.
        reference: `module:Name`; the module is in the working directory or installed.
        base: the class that it must be a subclass of.

    Raises:
        ConfigError: the module or class doesn't exist or has the wrong type; the message has the key and what was
            expected.
    """
    module_name, _, name = reference.partition(":")
    module = _import(key, module_name)
    found = getattr(module, name, None)
    wanted = f"a subclass of {base.__module__}.{base.__qualname__}"
    if found is None:
        others = [one for one, value in vars(module).items() if _is_subclass(value, base) and value is not base]
        has = f"; it has {', '.join(others)}" if others else f"; expected {wanted} of that name"
        raise ConfigError(f"{key}: the module {module_name!r} ({module.__file__}) has no {name!r}{has}")
    if not _is_subclass(found, base):
        what = f"the class {found.__name__}" if inspect.isclass(found) else f"of the type {type(found).__name__}"
        raise ConfigError(f"{key}: expected {wanted}; {reference} is {what}")
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise ConfigError(f"{key}: {reference} lacks the methods {', '.join(missing)} of {base.__qualname__}")
    result: type[_T] = found
    return result


def source_file(module: str) -> Path | None:
    """Return the file that `load` would import a module from; None if there is no such module or it has no file.

    Neither the module nor a package above it is imported.

    Args:
        module: the dotted name of a module, in the working directory or installed.
    """
    first, *others = module.split(".")
    try:
        spec = PathFinder.find_spec(first, [os.getcwd()]) or importlib.util.find_spec(first)
    except (ImportError, ValueError):  # a module that is loaded already may have no specification
        return None
    name = first
    for other in others:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{other}"
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


@contextmanager
def attribute_errors(key: str, reference: str) -> Iterator[None]:
    """Attribute exceptions raised in the context to a plug-in. FedMTL's own exceptions pass unchanged.

    Args:
        key: the setting that names the plug-in.
        reference: its `module:Name`.

    Raises:
        ConfigError: the plug-in's code raised; the message has the key, the reference, and the file and line.
    """
    try:
        yield
    except FedMTLError:
        raise
    except Exception as error:
        raise ConfigError(f"{key}: {reference} raised {_described(error)}") from error


class Registry(Generic[_T]):
    """The classes that one setting can name: built-in classes by name, and users' classes as `module:Name`.

    Args:
        key: the setting, for messages.
        base: the interface of all these classes. Only its public methods are called on a user's object. Its other
            public attributes, including properties, are read once when the object is made.
        built_in: the built-in classes by name.
    """

    def __init__(self, key: str, base: type[_T], built_in: Mapping[str, type[_T]]):
        self.key = key
        self._base = base
        self._built_in: Mapping[str, Callable[..., _T]] = built_in

    def make(self, name: str, *arguments: object) -> _T:
        """Construct an object of the class that the setting names. A user class's exceptions name the setting.

        Args:
            name: the setting's value.
            arguments: the arguments of the constructor.

        Raises:
            ConfigError: a user's class can't be loaded or constructed. The object's methods raise it too, if the
                user's methods raise anything but FedMTL's own exceptions.
        """
        if name in self._built_in:
            return self._built_in[name](*arguments)
        return self._adapted(name, *arguments)

    def _adapted(self, reference: str, *arguments: object) -> _T:
        """Return an implementation of the interface that forwards to a new object of a user's class."""
        found: Callable[..., _T] = load(self.key, reference, self._base)
        with attribute_errors(self.key, reference):
            own = found(*arguments)
            members = {name: self._member(reference, own, name) for name in dir(self._base) if not name.startswith("_")}
        adapter: Callable[..., _T] = type(type(own).__name__, (self._base,), members)
        return adapter(*arguments)

    def _member(self, reference: str, own: _T, name: str) -> object:
        """Return a method that forwards to a user's object, or the value of another attribute."""
        if not inspect.isfunction(inspect.getattr_static(self._base, name)):
            return getattr(own, name)

        def forward(adapter: _T, *arguments: object, **named: object) -> object:
            with attribute_errors(self.key, reference):
                return getattr(own, name)(*arguments, **named)

        return forward


def _import(key: str, name: str) -> ModuleType:
    folder = os.getcwd()
    with _importing:
        if folder not in sys.path:
            sys.path.insert(0, folder)  # as `python -m` does, and permanently: modules may import others later
        importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{key}: there is no module {error.name!r}, neither in the working directory ({folder}) nor installed"
            ) from None
        raise ConfigError(f"{key}: the module {name!r} can't be imported: {_described(error)}") from error
    except (Exception, SystemExit) as error:  # a script without a `__main__` guard may end the process on import
        raise ConfigError(f"{key}: the module {name!r} can't be imported: {_described(error)}") from error


def _is_subclass(value: object, base: type) -> bool:
    return inspect.isclass(value) and issubclass(value, base)


def _described(error: BaseException) -> str:
    """Describe an exception of user code in one line, with its place."""
    lines = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError):
        place = f"{error.filename}, line {error.lineno}"
    else:
        place = f"{lines[-1].filename}, line {lines[-1].lineno}" if lines else "unknown place"
    text = str(error.msg if isinstance(error, SyntaxError) else error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text} ({place})" if text else f"{type(error).__name__} ({place})"
