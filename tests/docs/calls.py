"""Looks through an example that cannot run: do the names of kerasdiff exist, and take the arguments that are given?"""

from __future__ import annotations

import ast
import importlib
import inspect
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

import public

from kerasdiff.request import make_request

# Of functions that hand **arguments on.
_PASSED_ON = frozenset(inspect.signature(make_request).parameters)


class Instance(NamedTuple):
    """Something of a class, of which no more is known."""

    kind: type


def check(source: str) -> None:
    """Raises AttributeError, ImportError or TypeError for what does not exist or is called wrongly."""
    _Reader().visit(ast.parse(source))


class _Reader(ast.NodeVisitor):
    """Knows what kerasdiff's names stand for, as far as imports, assignments and annotations tell."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {"kerasdiff": importlib.import_module("kerasdiff")}

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name.partition(".")[0] == "kerasdiff":
                importlib.import_module(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module is not None and node.module.partition(".")[0] == "kerasdiff":
            module = importlib.import_module(node.module)
            for alias in node.names:
                self._known[alias.asname or alias.name] = getattr(module, alias.name)

    def visit_Assign(self, node: ast.Assign) -> None:
        value = self._value(node.value)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self._known[target.id] = value

    def generic_visit(self, node: ast.AST) -> None:
        """Looks at whole expressions, each once."""
        if isinstance(node, ast.expr):
            self._value(node)
        else:
            super().generic_visit(node)

    def _value(self, node: ast.expr) -> Any:
        """What an expression is; None if that is not known."""
        if isinstance(node, ast.Name):
            return self._known.get(node.id)
        if isinstance(node, ast.Attribute):
            return _attribute(self._value(node.value), node.attr)
        if isinstance(node, ast.Call):
            for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
                self._value(argument)
            return _called(self._value(node.func), node)
        for child in ast.iter_child_nodes(node):
            self.visit(child)
        return None


def _attribute(owner: Any, name: str) -> Any:
    if owner is None:
        return None
    if not isinstance(owner, Instance):
        return getattr(owner, name)
    found = inspect.getattr_static(owner.kind, name, None)
    if inspect.isfunction(found):
        return found.__get__(object.__new__(owner.kind))
    if isinstance(found, property):
        return _of_annotation(_hints(found.fget).get("return"))
    if found is None and not _set_when_made(owner.kind, name):
        raise AttributeError(f"{owner.kind.__name__} has no {name}")
    return _of_annotation(_hints(owner.kind).get(name))


def _set_when_made(kind: type, name: str) -> bool:
    """Whether instances have an attribute that their class does not have."""
    place = f"{kind.__module__}.{kind.__qualname__}"
    return place.startswith("kerasdiff.") and name in public.found(place).all_members


def _called(function: Any, node: ast.Call) -> Any:
    if function is None or isinstance(function, Instance):
        return None
    _check_arguments(function, node)
    if isinstance(function, type):
        return Instance(function)
    return _of_annotation(_hints(function).get("return"))


def _check_arguments(function: Callable[..., Any], node: ast.Call) -> None:
    signature = inspect.signature(function)
    names = [keyword.arg for keyword in node.keywords if keyword.arg is not None]
    plain = [argument for argument in node.args if not isinstance(argument, ast.Starred)]
    signature.bind_partial(*plain, **dict.fromkeys(names))
    if any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values()):
        unknown = set(names) - set(signature.parameters) - _PASSED_ON
        if unknown:
            raise TypeError(f"{function.__name__} has no argument {', '.join(sorted(unknown))}")


def _hints(owner: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(owner)
    except NameError:  # of what is imported for annotations only
        return {}


def _of_annotation(hint: Any) -> Instance | None:
    return Instance(hint) if isinstance(hint, type) and hint is not Any else None
