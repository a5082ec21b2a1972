"""snapfs: a live and a frozen view of one disk image.

The engine is the package `cow`: beside this one in a clone, within it where it is installed, so that no other package
of that name is met or overwritten. It is found here, by its one name, in both.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from os.path import dirname, isdir

__version__ = "0.1.0"

_ENGINE = "cow"
_HERE = dirname(__file__)


class _EngineFinder:
    """Finds the engine before anything else of its name is found."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != _ENGINE:
            return None
        return PathFinder.find_spec(name, [_HERE if isdir(f"{_HERE}/{_ENGINE}") else dirname(_HERE)])


sys.meta_path.insert(0, _EngineFinder)
