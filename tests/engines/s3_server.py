"""An S3 of this machine alone, that moto plays: installed into an environment of its own, once."""

from __future__ import annotations

import fcntl
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.machine import wait_until

_ENVIRONMENT = Path(__file__).parents[2] / ".venv" / "s3-server"
_INSTALL_S = 600


def installed() -> Path:
    """The program."""
    program = _ENVIRONMENT / "bin" / "moto_server"
    with (_ENVIRONMENT.parent / "s3-server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (_ENVIRONMENT / "made").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", _ENVIRONMENT], check=True, timeout=_INSTALL_S)
            words = ["install", "-q", "-q", "--disable-pip-version-check", "moto[server]>=5"]
            subprocess.run([_ENVIRONMENT / "bin" / "pip", *words], check=True, timeout=_INSTALL_S)
            (_ENVIRONMENT / "made").touch()
    return program


@contextmanager
def s3_server() -> Iterator[str]:
    """Where it is."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [installed(), "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _answers(url))
        yield url
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False
