"""Root ends the instance of another user in that user's name.

What is unmounted, which process gets a signal and which store is opened then rests on what that user's server says
and on directories that he may rename meanwhile; done as him it can meet nothing that he could not have ended himself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable

from snapfs import errors
from snapfs.errors import SnapfsError
from snapfs.system.asking import become

_NULL_FDS = (0, 1, 2)
_KINDS = {
    kind.__name__: kind
    for kind in (errors.BusyError, errors.DoneWithProblem, errors.NotMountedError, errors.PermissionDeniedError)
}


def as_owner(owner: tuple[int, int] | None, function: Callable[[], None]) -> None:
    """Call `function` as `owner` (uid, gid) when we are root and he is another user, else as who we are."""
    if owner is None or owner[0] == os.geteuid() or os.geteuid() != 0:
        function()
        return
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        try:
            _let_go_of_terminal()
            become(owner)
            os.write(write_fd, _outcome(function))
        finally:
            os._exit(0)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    _raise(said)


def _let_go_of_terminal() -> None:
    """A program that is started as the user could type into root's terminal."""
    null_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in _NULL_FDS:
        os.dup2(null_fd, fd)


def _outcome(function: Callable[[], None]) -> bytes:
    try:
        function()
    except SnapfsError as error:
        return json.dumps([type(error).__name__, error.sentence]).encode()
    except OSError as error:
        return json.dumps(["", f"{error.filename or 'The system'}: {error.strerror}."]).encode()
    return b"[]"


def _raise(said: bytes) -> None:
    """What went wrong there, here."""
    if not said:
        raise SnapfsError("What was begun as the owner of the instance did not come to an end; look at its mounts.")
    outcome = json.loads(said)
    if outcome:
        kind, sentence = outcome
        raise _KINDS.get(kind, SnapfsError)(sentence)
