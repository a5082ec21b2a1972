"""Every name that the source has, without loading it: modules, what is defined in them, what classes have."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from documents import ROOT

SOURCES = ("snapfs", "cow", "bench", "tests")
# What is written there between quotes is only about the words of the others.
_JUDGES = ("tests",)


class Symbols:
    """Of all modules together: a document names most things without saying where they are."""

    def __init__(self, paths: Iterable[Path]) -> None:
        # By a module's short name, what is defined in it: several may have the same short name.
        self.modules: dict[str, set[str]] = defaultdict(set)
        self.classes: dict[str, set[str]] = defaultdict(set)
        self._bases: dict[str, set[str]] = defaultdict(set)
        self._dotted: set[str] = set()
        self.words: set[str] = set()
        for path in paths:
            self._read(path)

    def _read(self, path: Path) -> None:
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        self._dotted.update(".".join(parts[first:end]) for end in range(len(parts) + 1) for first in range(end))
        tree = ast.parse(path.read_text())
        for node in tree.body:
            self.modules[parts[-1]].update(_defined(node))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                self.classes[node.name].update(_members(node))
                self._bases[node.name].update(ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases)
            elif isinstance(node, ast.Constant) and parts[0] not in _JUDGES:
                self._note_word(node.value)

    def _note_word(self, value: object) -> None:
        """A string constant: names of files and fields, values of options."""
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        if isinstance(value, str):
            self.words.add(value)

    def has(self, name: str) -> bool:
        """Whether `a`, `A.b` or `a.b.C.d` is anything of ours, or `a` a word that we use."""
        is_one = name in self.words or name in self._everything or name in self._dotted
        return is_one or self._has_member(name)

    @cached_property
    def _everything(self) -> set[str]:
        return {name for group in (self.modules, self.classes) for names in group.values() for name in names} | set(
            self.classes
        )

    def _has_member(self, name: str) -> bool:
        owner, dot, member = name.rpartition(".")
        if not dot:
            return False
        short = owner.rpartition(".")[2]
        if owner != short and owner not in self._dotted and not self._has_member(owner):
            return False
        return member in self.modules.get(short, ()) or member in self._members_of(short)

    def _members_of(self, class_name: str) -> set[str]:
        members = set(self.classes.get(class_name, ()))
        for base in self._bases.get(class_name, ()):
            members |= self._members_of(base) if base != class_name else set()
        return members


def _defined(node: ast.stmt) -> Iterator[str]:
    """What a statement of a module gives a name to; what is imported too, as of a package's public names."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.ImportFrom | ast.Import):
        yield from (alias.asname or alias.name for alias in node.names)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        yield from _targets(node)
    elif isinstance(node, ast.If | ast.Try):
        yield from (name for inner in node.body for name in _defined(inner))


def _targets(node: ast.Assign | ast.AnnAssign) -> Iterator[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    for target in targets:
        yield from (one.id for one in ast.walk(target) if isinstance(one, ast.Name))


def _members(node: ast.ClassDef) -> Iterator[str]:
    """Methods, fields, and what a method gives to `self`."""
    for inner in node.body:
        yield from _defined(inner)
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store) and _is_self(inner.value):
            yield inner.attr


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls", "number")


def ours() -> Symbols:
    return Symbols(path for source in SOURCES for path in sorted((ROOT / source).rglob("*.py")))
