"""What code stands behind a result: when it changes, stored results are not reused.

`code_of` follows a function: its own source counts, and that of everything in this package that it refers to, by and
by. Comments, docstrings, type hints and layout play no part. What a method is trained by is thus found, not listed.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TypeVar, get_type_hints

PACKAGE = __name__.partition(".")[0]
LIBRARIES = ("torch", "transformers", "peft", "accelerate")

Function = TypeVar("Function", bound=Callable)


def by_content(function: Function) -> Function:
    """Mark a function whose result a condition knows by its content (people, weights): its code is not followed."""
    function.by_content = True
    return function


class Table(dict):
    """A table whose rows count one by one (`values_of`): code that looks one up does not depend on the others."""


def bare(source: str) -> ast.Module:
    """Python source as a tree, without comments, docstrings, type hints of functions and layout."""
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
    return tree


@cache
def of(files: tuple[str, ...], libraries: tuple[str, ...] = ()) -> str:
    """Hash of what some files of the package do, and of the versions of some libraries."""
    here = Path(__file__).parent
    texts = [(here / name).read_text("utf-8") for name in files]
    parts = [ast.unparse(bare(t)) if name.endswith(".py") else t for t, name in zip(texts, files, strict=True)]
    return _digest(parts, libraries)


def package() -> str:
    """Hash of what the whole package does, its data included."""
    here = Path(__file__).parent
    files = (file for file in sorted(here.rglob("*.*")) if file.suffix in (".py", ".yaml", ".md"))
    return of(tuple(str(file.relative_to(here)) for file in files), LIBRARIES)


@cache
def code_of(function: Callable, owner: type | None = None) -> str:
    """Hash of what a function does, a method of `owner` perhaps, of all in this package that it refers to, and of the
    libraries. What is looked up on an instance alone (`self.x`, set when it was made) is seen through the class that
    an annotation of `owner` gives for it.
    """
    return _digest(_followed(function, owner), LIBRARIES)


def values_of(value: object) -> str:
    """Hash of a value: plain data, and functions in it as `code_of` has them. Of a dataclass, fields that play no part
    in comparisons (`field(compare=False)`) are left out."""
    seen: dict[str, str] = {}
    return _digest([_constant(value, seen), *_listed(seen)])


def _digest(parts: list[str], libraries: tuple[str, ...] = ()) -> str:
    parts = [*parts, *(f"{name}=={version(name)}" for name in libraries)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _followed(function: Callable, owner: type | None) -> list[str]:
    seen: dict[str, str] = {}
    _follow(function, owner, seen)
    return _listed(seen)


def _listed(seen: dict[str, str]) -> list[str]:
    return [f"{name}:{seen[name]}" for name in sorted(seen)]


def _follow(thing: object, owner: type | None, seen: dict[str, str]) -> None:
    """Note in `seen`, by name, the source of a function or class of this package, and all it refers to."""
    if isinstance(thing, property | functools.cached_property):
        thing = thing.fget if isinstance(thing, property) else thing.func
    thing = inspect.unwrap(getattr(thing, "__func__", thing))
    module = getattr(thing, "__module__", None) or ""
    if module.partition(".")[0] != PACKAGE or getattr(thing, "by_content", False):
        return
    name = f"{module}.{thing.__qualname__}" + (f" of {owner.__name__}" if owner else "")
    if name in seen:
        return
    tree, seen[name] = _source(thing)
    if inspect.isclass(thing):
        owner = thing
        for base in thing.__bases__:
            _follow(base, None, seen)
    for scope, word in _words(tree):
        found, own = _found(scope, word, sys.modules[module], owner)
        if own and f"{own.__module__}.{own.__qualname__}" in seen:  # the class is there as a whole
            continue
        if _has_code(found):
            _follow(found, own, seen)
        elif found is not None and not isinstance(found, ModuleType):
            seen[f"{module}.{scope}.{word}"] = _constant(found, seen)
    _follow_imports(tree, seen)


@cache
def _source(thing: object) -> tuple[ast.Module, str]:
    """The source of a function or class, as a tree and as text, bare."""
    tree = bare(inspect.getsource(thing))
    return tree, ast.unparse(tree)


def _found(scope: str, word: str, module: ModuleType, owner: type | None) -> tuple[object, type | None]:
    """What a word means in a module, or, looked up on `self`, in the class `owner`; and the class, if it is of one."""
    if owner and scope.startswith("self."):
        owner, scope = get_type_hints(owner).get(scope.removeprefix("self.")), "self"
    if inspect.isclass(owner) and scope in ("self", "cls", "super()"):
        return inspect.getattr_static(owner, word, None), owner
    home = getattr(module, scope, None) if scope else module
    ours = isinstance(home, ModuleType) and home.__name__.partition(".")[0] == PACKAGE
    return (getattr(home, word, None) if ours else None), None


def _has_code(thing: object) -> bool:
    wrapped = isinstance(thing, property | functools.cached_property | staticmethod | classmethod)
    return wrapped or inspect.isclass(thing) or inspect.isfunction(inspect.unwrap(thing) if callable(thing) else thing)


def _words(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Names that code uses: ("", name), and (name, attribute) of what is looked up on a name."""
    hints = {id(n) for a in ast.walk(tree) if isinstance(a, ast.AnnAssign) for n in ast.walk(a.annotation)}
    for node in ast.walk(tree):
        if id(node) in hints:
            continue
        if isinstance(node, ast.Name):
            yield "", node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute | ast.Call):
            yield ast.unparse(node.value), node.attr


def _follow_imports(tree: ast.Module, seen: dict[str, str]) -> None:
    """What a function imports for itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE:
            for alias in node.names:
                _follow(getattr(importlib.import_module(node.module), alias.name, None), None, seen)


def _constant(value: object, seen: dict[str, str]) -> str:
    """A value as text that is the same on every machine; functions in it are followed."""
    if isinstance(value, str | int | float | bool | bytes | None):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(_constant(v, seen) for v in value)}]"
    if isinstance(value, set | frozenset):
        return f"{{{','.join(sorted(_constant(v, seen) for v in value))}}}"
    if isinstance(value, Table):
        return "Table"
    if isinstance(value, dict):
        return f"{{{','.join(f'{k!r}:{_constant(v, seen)}' for k, v in value.items())}}}"
    if is_dataclass(value) and not isinstance(value, type):
        own = {f.name: getattr(value, f.name) for f in fields(value) if f.compare}
        return f"{type(value).__name__}{_constant(own, seen)}"
    if inspect.isfunction(value):
        _follow(value, None, seen)
    return value.__qualname__ if inspect.isroutine(value) or inspect.isclass(value) else type(value).__name__
