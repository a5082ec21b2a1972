"""`snapfs`, loaded once: each command is a fork of this process, which takes a tenth of the time of starting Python.

A line of JSON on stdin is a command: `words`, `environment`, `directory`, and `step`, before which it is to be killed
(as in dying_backup.py; None: not at all). A line on stdout says how it ended: `code`, `out`, `err`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import signal
import sys
import tempfile
from typing import IO, Any

from snapfs import backups, commands, imager, startup
from tests.nightly.dying_backup import die_before

TIMEOUT_S = 120


def load() -> None:
    for package in (backups, commands, imager):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


def run(asked: dict[str, Any], out: IO[bytes], err: IO[bytes]) -> None:
    """In the child: as a process that was started for it."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for fd, number in ((nothing, 0), (out.fileno(), 1), (err.fileno(), 2)):
        os.dup2(fd, number)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in enumerate("rww"))
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["directory"])
    signal.alarm(TIMEOUT_S)
    if asked["step"] is not None:
        die_before(asked["step"])
    sys.argv = ["snapfs", *asked["words"]]
    startup.main()


def serve() -> None:
    for line in sys.stdin:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    run(json.loads(line), out, err)
                    code = 0
                except SystemExit as end:
                    code = end.code if isinstance(end.code, int) else int(end.code is not None)
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            said = [file.seek(0) or file.read().decode(errors="surrogateescape") for file in (out, err)]
        print(json.dumps({"code": code, "out": said[0], "err": said[1]}), flush=True)


if __name__ == "__main__":
    load()
    gc.collect()
    gc.freeze()
    serve()
