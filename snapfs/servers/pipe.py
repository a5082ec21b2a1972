"""What a process says on its pipe to whoever started it: the words, each a line, and how they are heard.

ready           it answers requests
gone            its view was unmounted
served          the last request is answered; what is left is the compactor's
event {FACTS}   something has happened that hooks are told of, in JSON
failed "WHY"    it ends; the sentence in JSON, so that it is one line whatever names are in it
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Final

READY: Final = b"ready\n"
GONE: Final = b"gone\n"
SERVED: Final = b"served\n"
_FAILED: Final = b"failed "
_EVENT: Final = b"event "
_PIECE_BYTES: Final = 4096


def failure_line(sentence: str) -> bytes:
    """What a process says when it fails."""
    return _FAILED + json.dumps(sentence).encode() + b"\n"


def sentence_of(line: bytes) -> str:
    """The sentence of a `failure_line`; "" when it is none, or its end is missing."""
    try:
        return str(json.loads(line.removeprefix(_FAILED)))
    except ValueError:
        return ""


def event_line(facts: Mapping[str, str]) -> bytes:
    """What a process says when something has happened."""
    return _EVENT + json.dumps(facts).encode() + b"\n"


def event_of(line: bytes) -> dict[str, str] | None:
    """The facts of an `event_line`; None when it is none, or its end is missing."""
    if not line.startswith(_EVENT):
        return None
    try:
        facts: dict[str, str] = json.loads(line.removeprefix(_EVENT))
    except ValueError:
        return None
    return facts


def tell(pipe_fd: int, line: bytes) -> None:
    """One of the lines above; nobody hears it when the supervisor was killed, and that is told by a signal."""
    with contextlib.suppress(BrokenPipeError):
        os.write(pipe_fd, line)


def heard(pipe_fd: int) -> list[bytes]:
    """Whole lines, as many as there are; waits for one. No line: the other end is closed."""
    said = b""
    while piece := os.read(pipe_fd, _PIECE_BYTES):
        said += piece
        if said.endswith(b"\n"):
            break
    return said.splitlines(keepends=True)
