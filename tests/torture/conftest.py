"""The campaigns use the rigs of mounted images and of cuts."""

from __future__ import annotations

import sys
from pathlib import Path

for name in ("cut", "mount"):
    sys.path.insert(1, str(Path(__file__).parents[1] / name))
