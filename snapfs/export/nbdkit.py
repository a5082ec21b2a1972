"""A snapshot by nbdkit, with a plugin of ours that knows which of it is used."""

from __future__ import annotations

import contextlib
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from snapfs.export.address import Address
from snapfs.export.process import Server, serving

_PLUGIN: Final = Path(__file__).with_name("nbdkit_plugin.py")


@contextlib.contextmanager
def nbdkit(
    fd: int, size_bytes: int, extents: Iterable[tuple[int, int]], address: Address, certificates: Path | None
) -> Iterator[Server]:
    """Serve what `fd` is open on, of which the `extents`, `(start, length)` in bytes, are used."""
    borders = array("Q")
    for start, length in extents:
        borders.extend((start, start + length))
    with tempfile.TemporaryFile() as file:
        file.write(borders)
        file.flush()
        fds = (fd, file.fileno())
        with serving(_command(address, certificates, fds, size_bytes), address, fds) as server:
            yield server


def _command(address: Address, certificates: Path | None, fds: tuple[int, int], size_bytes: int) -> list[str]:
    command = ["nbdkit", "--foreground", "--exit-with-parent", "--readonly"]
    if address.path is not None:
        command.append(f"--unix={address.path}")
    else:
        command += [f"--ipaddr={address.host}", f"--port={address.port}"]
    if address.is_tls:
        command += ["--tls=require", f"--tls-certificates={certificates}"]
    file, extents = fds
    return [*command, "python", str(_PLUGIN), f"file={file}", f"extents={extents}", f"bytes={size_bytes}"]
