"""What the command stands on, before anything else is loaded: whoever starts it may have left it in any state.

- Standard descriptors that are closed lead to /dev/null: the next file opened would take their numbers, and what is
  printed would go into it.
- Signals that are blocked or ignored from outside must not keep servers from being stopped or children from being
  waited for. SIGINT and SIGHUP that are ignored stay so (nohup, a job in the background).
- Names of any bytes can be printed, in any locale.
- As many open files as servers need are allowed where this user may allow them.
"""

from __future__ import annotations

import codecs
import gc
import io
import os
import resource
import signal
import sys
from contextlib import suppress
from importlib import import_module

_ENOUGH_FILES = 1024
# `ExitCode.INTERRUPTED`, before that can be loaded.
_INTERRUPTED = 130
_TEXT_ERRORS = "snapfs-text"


def main() -> None:
    """The entry point of `snapfs`."""
    _run("snapfs.cli", "main")


def mount_helper() -> None:
    """The entry point of `mount.fuse.snapfs`."""
    _run("snapfs.cli.mount_helper", "mount_main")


def umount_helper() -> None:
    """The entry point of `umount.fuse.snapfs`."""
    _run("snapfs.cli.mount_helper", "umount_main")


def _run(module: str, name: str) -> None:
    prepare()
    try:
        run = getattr(import_module(module), name)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except (ImportError, MemoryError, OSError) as error:
        # A library that finds no memory is not found, as it says; one that is missing is.
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        print(
            f"snapfs: Its parts cannot be loaded ({reason}); raise the limits of this shell (ulimit -v, ulimit -n), "
            "or install it again.",
            file=sys.stderr,
        )
        sys.exit(1)
    try:
        run()
    finally:
        # What is loaded is not looked through once more at the end: that would take a tenth of the command's time.
        gc.freeze()


def prepare() -> None:
    """Make this process one that can be relied on."""
    # A library that takes memory for each processor, and ends the process when there is too little.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _open_standard_descriptors()
    _free_signals()
    _allow_files()


def _open_standard_descriptors() -> None:
    for fd in (0, 1, 2):
        with suppress(OSError):
            os.fstat(fd)
            continue
        _open_nothing(fd)
    codecs.register_error(_TEXT_ERRORS, _encoded_anyway)
    # For the whole life of the process, as Python itself would have made them.
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_TEXT_ERRORS)


def _open_nothing(fd: int) -> None:
    try:
        opened = os.open(os.devnull, os.O_RDWR)
    except OSError:  # a root directory without it
        opened = os.memfd_create("nothing")
    if opened != fd:
        os.dup2(opened, fd)
        os.close(opened)
    os.set_inheritable(fd, True)


def _encoded_anyway(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes of a name as they are, anything else as an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    if all("\udc80" <= letter <= "\udcff" for letter in wrong):
        return bytes(ord(letter) - 0xDC00 for letter in wrong), error.end
    return wrong.encode("ascii", "backslashreplace"), error.end


def _free_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (_ENOUGH_FILES, hard):
        if 0 <= soft < wanted:
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
                return
