"""A bare pyfuse3 pass-through (pyfuse3_server.py): what Python and pyfuse3 cost, before snapfs adds anything,
with the request loop of snapfs."""

from __future__ import annotations

import sys

from bench.peers.libfuse import Passthrough
from bench.rows import PYFUSE3


class Pyfuse3(Passthrough):
    name = PYFUSE3

    def command(self) -> list[str]:
        return [sys.executable, "-m", "bench.peers.pyfuse3_server"]
