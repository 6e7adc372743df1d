"""Plug-ins: classes in a user's own file, which the configuration names as `module:Name`.

What a configuration names is imported and run. It is this machine's own configuration: nothing that comes over the wire
names a plug-in.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Generic, TypeVar

from fedmtl_core.errors import ConfigError, FedMTLError

FORM = "module:Name"
_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)

_T = TypeVar("_T")

_importing = threading.Lock()
"""Held while the import system is told to look again, which isn't for several threads at once."""


def is_reference(text: str) -> bool:
    """Whether a text has the form `module:Name`."""
    return _REFERENCE.fullmatch(text) is not None


def load(key: str, reference: str, base: type[_T]) -> type[_T]:
    """The class that a setting names.

    Args:
        key: the setting, for messages.
        reference: `module:Name`; the module is in the working folder or installed.
        base: what it has to be a subclass of.

    Raises:
        ConfigError: there is no such module or class, or it is something else; the message has the key and what was
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


@contextmanager
def attribute_errors(key: str, reference: str) -> Iterator[None]:
    """Attribute exceptions raised within to a plug-in. FedMTL's own exceptions pass unchanged.

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
    """The classes that one setting can name: the built-in ones by name, and users' own as `module:Name`.

    Args:
        key: the setting, for messages.
        base: the interface that all of them implement. Its public methods are what a user's class is called by. Its
            other public attributes, properties among them, are read once, when an object is made.
        built_in: the built-in classes by name.
    """

    def __init__(self, key: str, base: type[_T], built_in: Mapping[str, type[_T]]):
        self.key = key
        self._base = base
        self._built_in: Mapping[str, Callable[..., _T]] = built_in

    def make(self, name: str, *arguments: object) -> _T:
        """An object of the class that the setting names. Exceptions of a user's class are attributed to the setting.

        Args:
            name: the setting's value.
            arguments: what the class is constructed with.

        Raises:
            ConfigError: a user's class can't be loaded or constructed. The methods of the object raise it too, where
                the user's raise anything but FedMTL's own exceptions.
        """
        if name in self._built_in:
            return self._built_in[name](*arguments)
        return self._adapted(name, *arguments)

    def _adapted(self, reference: str, *arguments: object) -> _T:
        """An implementation of the interface that forwards to a new object of a user's class."""
        found: Callable[..., _T] = load(self.key, reference, self._base)
        with attribute_errors(self.key, reference):
            own = found(*arguments)
            members = {name: self._member(reference, own, name) for name in dir(self._base) if not name.startswith("_")}
        adapter: Callable[..., _T] = type(type(own).__name__, (self._base,), members)
        return adapter(*arguments)

    def _member(self, reference: str, own: _T, name: str) -> object:
        """A method that forwards to a user's object, or the value of another attribute."""
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
            sys.path.insert(0, folder)  # as `python -m` has it; what is imported may import its neighbours later
        importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{key}: there is no module {error.name!r}, neither in the working folder ({folder}) nor installed"
            ) from None
        raise ConfigError(f"{key}: the module {name!r} can't be imported: {_described(error)}") from error
    except (Exception, SystemExit) as error:  # a script without a guard ends the process when it is imported
        raise ConfigError(f"{key}: the module {name!r} can't be imported: {_described(error)}") from error


def _is_subclass(value: object, base: type) -> bool:
    return inspect.isclass(value) and issubclass(value, base)


def _described(error: BaseException) -> str:
    """An error of somebody's own code in one line: what, and where."""
    lines = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError):
        place = f"{error.filename}, line {error.lineno}"
    else:
        place = f"{lines[-1].filename}, line {lines[-1].lineno}" if lines else "somewhere"
    text = str(error.msg if isinstance(error, SyntaxError) else error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text} ({place})" if text else f"{type(error).__name__} ({place})"
