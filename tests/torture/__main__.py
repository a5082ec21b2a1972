"""`scripts/torture WORD ...`: the campaigns, each in a module of its own with a `main(arguments) -> exit code`."""

from __future__ import annotations

import importlib
import signal
import sys

CAMPAIGNS = {
    "chain": "chain_campaign",
    "cuts": "cuts_campaign",
    "maps": "maps_campaign",
    "model": "model_campaign",
    "nights": "nights_campaign",
    "readers": "readers_campaign",
    "run": "instance_campaign",
    "together": "together_campaign",
}


def main() -> int:
    words = sys.argv[1:]
    if not words or words[0] not in CAMPAIGNS:
        print(f"usage: scripts/torture {'|'.join(CAMPAIGNS)} [--help] [OPTION ...]", file=sys.stderr)
        return 2
    # Whoever ends it, with `timeout` or so, finds nothing left of it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    return int(importlib.import_module(CAMPAIGNS[words[0]]).main(words[1:]))


sys.exit(main())
