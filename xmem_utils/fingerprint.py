"""A fingerprint of the code behind a result: when it changes, stored runs are not reused."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

# What turns a condition into an adapter and records. People are fingerprinted by content, base models by weights.
FILES = ("checkpoint.py", "memorization/experiment.py", "train.py", "score.py", "vlm/adapters.py", "vlm/batches.py",
         "vlm/forward.py", "vlm/lean.py", "vlm/name_tree.py", "vlm/load.py", "vlm/precision.py", "vlm/processors.py",
         "vlm/prompts.py")  # fmt: skip
UNLEARNING = (*FILES, "perception.py", *(f"unlearning/{name}.py" for name in
              ("attacks", "evaluation", "losses", "methods", "people", "experiment", "train")))  # fmt: skip
MULTIHOP = (*FILES, *(f"multihop/{name}.py" for name in ("tasks", "evaluation", "people", "experiment")))
MITIGATION = (*FILES, "perception.py", *(f"mitigation/{name}.py" for name in
              ("evaluation", "losses", "data", "methods", "experiment", "train")))  # fmt: skip
LIBRARIES = ("torch", "transformers", "peft", "accelerate")


def meaning(source: str) -> str:
    """Python source without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if documented and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


@cache
def of(files: tuple[str, ...], libraries: tuple[str, ...] = ()) -> str:
    """Hash of what some files of the package do, and of the versions of some libraries."""
    here = Path(__file__).parent
    parts = [meaning((here / name).read_text()) for name in files]
    parts += [f"{name}=={version(name)}" for name in libraries]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def fingerprint(files: tuple[str, ...] = FILES) -> str:
    """Hash of the code that trains and evaluates, and of the libraries it stands on."""
    return of(files, LIBRARIES)
