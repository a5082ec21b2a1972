"""Where an export may be: NBD URIs that are understood, and those that would show the image to everybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapfs.errors import SnapfsError, UsageError
from snapfs.export.address import Address, parse_address


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("nbd+unix:///?socket=/run/s", {"is_tls": False, "path": Path("/run/s")}),
        ("nbds+unix:///?socket=/run/s", {"is_tls": True, "path": Path("/run/s")}),
        ("nbd://127.0.0.1", {"is_tls": False, "host": "127.0.0.1", "port": 10809}),
        ("nbd://localhost:1234", {"is_tls": False, "host": "127.0.0.1", "port": 1234}),
        ("nbd://[::1]:1234/", {"is_tls": False, "host": "::1", "port": 1234}),
        ("nbds://192.0.2.1:1234", {"is_tls": True, "host": "192.0.2.1", "port": 1234}),
    ],
)
def test_an_address_is_understood(uri: str, address: dict[str, object]) -> None:
    assert parse_address(uri) == Address(uri, **address)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "uri",
    [
        "disk.img",
        "http://127.0.0.1",
        "nbd+vsock://2",
        "nbd://127.0.0.1:99999",
        "nbd://127.0.0.1/name",
        "nbd+unix:///",
        "nbd+unix:///?socket=relative",
        "nbd+unix:///?socket=/" + "x" * 107,
        "nbd:///",
        "nbd://192.0.2.1",
        "nbd://0.0.0.0",
        "nbd://[::]:10809",
    ],
)
def test_others_are_refused(uri: str) -> None:
    with pytest.raises(UsageError):
        parse_address(uri)


def test_what_has_the_name_of_a_socket_is_left_alone(tmp_path: Path) -> None:
    taken = tmp_path / "socket"
    taken.symlink_to("nowhere")
    with pytest.raises(SnapfsError, match="exists already"):
        parse_address(f"nbd+unix:///?socket={taken}").check_free()
    with pytest.raises(SnapfsError, match="no directory"):
        parse_address(f"nbd+unix:///?socket={tmp_path}/none/socket").check_free()
