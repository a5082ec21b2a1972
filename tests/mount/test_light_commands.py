"""Commands that only ask the servers are quick, since they load nothing that serves, reads maps or draws."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ground import Ground
from mounted import COMMAND_TIMEOUT_S

HEAVY = {"trio", "pyfuse3", "numpy", "PIL", "rich", "asyncio", "multiprocessing", "email"}
TELLING = """
import sys
from snapfs.startup import main
try:
    main()
finally:
    print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def loaded_by(*words: str | Path) -> set[str]:
    """The packages that `snapfs` has loaded when it ends, which it must do well."""
    command = [sys.executable, "-c", TELLING, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_status_loads_nothing_but_what_asks(ground: Ground, options: tuple[str, ...]) -> None:
    instance = ground.mounted(ground.image(1 << 20))
    for loaded in (loaded_by("status", instance.live, *options), loaded_by("status", *options)):
        assert "snapfs" in loaded
        assert not (HEAVY | {"cow", "bitarray", "lz4"}) & loaded


@pytest.mark.parametrize("command", ["limit", "snapshot", "release", "umount"])
def test_a_command_that_asks_loads_nothing_that_serves(ground: Ground, command: str) -> None:
    instance = ground.mounted(ground.image(1 << 20))
    more = {"limit": ("none",), "release": ("--all",)}.get(command, ())
    assert not HEAVY & loaded_by(command, instance.live, *more)
