"""The public names of the engine: what type checkers see is what is loaded."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import cow


def _promised() -> set[tuple[str, str]]:
    tree = ast.parse(Path(str(cow.__file__)).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {(str(node.module), alias.name) for node in imports for alias in node.names}


def test_what_is_loaded_is_what_type_checkers_see():
    assert {(owner, name) for owner, names in cow._OWNERS.items() for name in names.split()} == _promised()
    assert all(getattr(cow, name).__name__ == name for _, name in _promised() if not name.isupper())


def test_a_name_loads_no_more_than_its_owner():
    code = "import sys; from cow import StoreError; print([name for name in sys.modules if name.startswith('cow.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['cow.errors']"
