"""Where an export is to be reached: an NBD URI.

Source: "The NBD Uniform Resource Indicator (URI) format", doc/uri.md of the NBD project.

    nbd+unix:///?socket=PATH     nbd://127.0.0.1:PORT     nbds+unix:///?socket=PATH     nbds://HOST:PORT

`nbds` asks for TLS. Without it only this machine may be told: whoever reaches the port reads the whole image.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from snapfs.errors import SnapfsError, UsageError

_DEFAULT_PORT: Final = 10809
# sun_path of unix(7), with its zero byte.
_MAX_SOCKET_BYTES: Final = 107


@dataclass(frozen=True)
class Address:
    """A Unix socket (`path`), or `host` and `port`."""

    uri: str
    is_tls: bool
    path: Path | None = None
    host: str = ""
    port: int = _DEFAULT_PORT

    def check_free(self) -> None:
        """SnapfsError when something is there already."""
        if self.path is not None and (self.path.exists() or self.path.is_symlink()):
            raise SnapfsError(f"{self.path} exists already; remove it, or name another socket.", path=self.path)
        if self.path is not None and not self.path.parent.is_dir():
            raise SnapfsError(
                f"{self.path.parent} is no directory; make it, or name another socket.", path=self.path.parent
            )
        if self.path is None and self.answers():
            raise SnapfsError(f"Somebody serves {self.uri} already; give another port.")

    def answers(self) -> bool:
        """Whether somebody takes connections there."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(socket.AF_UNIX if self.path else family) as one:
            try:
                one.connect(str(self.path) if self.path else (self.host, self.port))
            except OSError:
                return False
        return True


def parse_address(uri: str) -> Address:
    """UsageError: it is none, or one that everybody could reach."""
    way_out = "give nbd+unix:///?socket=PATH or nbd://127.0.0.1:PORT"
    try:
        parts = urlsplit(uri)
        port = parts.port or _DEFAULT_PORT
    except ValueError as error:
        raise UsageError(f"{uri} is no address: {error}; {way_out}.") from error
    scheme, _, kind = parts.scheme.partition("+")
    if scheme not in ("nbd", "nbds") or kind not in ("", "unix"):
        raise UsageError(f"{uri} is no address of NBD; {way_out}.")
    if parts.path not in ("", "/"):
        raise UsageError(f"{uri} names an export, and there is only one here; leave out {parts.path}.")
    is_tls = scheme == "nbds"
    if kind == "unix":
        path = Path(parse_qs(parts.query).get("socket", [""])[0])
        if not path.is_absolute() or len(bytes(path)) > _MAX_SOCKET_BYTES:
            raise UsageError(
                f"{uri} names no socket by an absolute path of at most {_MAX_SOCKET_BYTES} bytes; {way_out}."
            )
        return Address(uri, is_tls, path)
    if not parts.hostname:
        raise UsageError(f"{uri} says no address of this machine; {way_out}.")
    if not (is_tls or _is_loopback(parts.hostname)):
        raise UsageError(
            f"Whoever reaches {parts.hostname} could read the whole image; {way_out}, or nbds:// with "
            "--tls-certificates."
        )
    return Address(uri, is_tls, None, "127.0.0.1" if parts.hostname == "localhost" else parts.hostname, port)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
