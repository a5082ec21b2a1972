"""Calling the hooks of one event."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from snapfs.errors import SnapfsError
from snapfs.freezing.hooks import find_hooks, run_hook

EVENT_KEY: Final = "SNAPFS_EVENT"
# Of each hook; it may send a mail, and not do a night's work.
HOOK_TIMEOUT_S: Final = 30.0


def check_hooks(directory: Path) -> None:
    """UsageError when there is no such directory; it may be empty, and hooks may come later."""
    find_hooks(directory)


def call_hooks(directory: Path, facts: Mapping[str, str], timeout_s: float = HOOK_TIMEOUT_S) -> list[str]:
    """Call all that are there now; sentences about those that failed. `facts` has the event as well."""
    event = facts[EVENT_KEY]
    try:
        hooks = find_hooks(directory)
    except SnapfsError as error:
        return [error.sentence]
    failures = ((hook, run_hook(hook, event, facts, timeout_s)) for hook in hooks)
    return [
        f"The hook {hook} {failure} when it was told of {event}; look at what it does."
        for hook, failure in failures
        if failure
    ]
