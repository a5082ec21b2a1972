"""A client of the network block device protocol, as far as `qemu-nbd` on a UNIX socket needs one.

Source: the NBD project's doc/proto.md: fixed newstyle negotiation, NBD_OPT_GO, simple replies. Several writes are
under way at once, because a server that compresses does so on all processors only then.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final

_INIT_MAGIC: Final = b"NBDMAGIC"
_OPTION_MAGIC: Final = b"IHAVEOPT"
_REPLY_OPTION_MAGIC: Final = 0x3E889045565A9
_REQUEST_MAGIC: Final = 0x25609513
_SIMPLE_REPLY_MAGIC: Final = 0x67446698
_FIXED_NEWSTYLE_NO_ZEROES: Final = 3
_OPT_GO: Final = 7
_REP_ACK, _REP_INFO, _REP_ERROR = 1, 3, 1 << 31
_INFO_EXPORT: Final = 0
_READ, _WRITE, _DISCONNECT, _FLUSH, _WRITE_ZEROES = 0, 1, 2, 3, 6

_OPTION: Final = struct.Struct(">8sII")
_OPTION_REPLY: Final = struct.Struct(">QIII")
_REQUEST: Final = struct.Struct(">IHHQQI")
_REPLY: Final = struct.Struct(">IIQ")
# Servers refuse more than 32 MiB; a request a cluster lets qemu-nbd compress side by side.
_MAX_UNDER_WAY: Final = 16


class NbdClient:
    """One export, open; every method raises OSError as a file would."""

    def __init__(self, path: str, write_bytes: int) -> None:
        self._write_bytes = write_bytes
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._under_way = 0
        self._handle = 0
        try:
            self._socket.connect(path)
            self.size_bytes = self._negotiate()
        except BaseException:
            self._socket.close()
            raise

    def write(self, view: memoryview, offset: int) -> None:
        """Returns when all of it was taken; what goes wrong with it is raised here or by a later call."""
        for start in range(0, len(view), self._write_bytes):
            piece = view[start : start + self._write_bytes]
            while self._under_way >= _MAX_UNDER_WAY:
                self._receive()
            self._send(_WRITE, offset + start, len(piece), piece)

    def write_zeroes(self, offset: int, length: int) -> None:
        while length:
            count = min(length, 1 << 30)
            self._send(_WRITE_ZEROES, offset, count)
            self._finish()
            offset, length = offset + count, length - count

    def read_into(self, view: memoryview, offset: int) -> None:
        self._finish()
        self._send(_READ, offset, len(view))
        self._receive()
        self._receive_into(view)

    def flush(self) -> None:
        """What was written is on the disk when this returns."""
        self._finish()
        self._send(_FLUSH, 0, 0)
        self._finish()

    def close(self, *, cleanly: bool) -> None:
        try:
            if cleanly:
                self._finish()
                self._send(_DISCONNECT, 0, 0)
        finally:
            self._socket.close()

    def _finish(self) -> None:
        while self._under_way:
            self._receive()

    def _send(self, command: int, offset: int, length: int, data: memoryview | None = None) -> None:
        self._handle += 1
        self._socket.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, command, self._handle, offset, length))
        if data is not None:
            self._socket.sendall(data)
        self._under_way += 1

    def _receive(self) -> None:
        magic, code, _ = _REPLY.unpack(self._receive_bytes(_REPLY.size))
        self._under_way -= 1
        if magic != _SIMPLE_REPLY_MAGIC:
            raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
        if code:
            raise OSError(code, os.strerror(code))

    def _negotiate(self) -> int:
        greeting = self._receive_bytes(18)
        if greeting[:16] != _INIT_MAGIC + _OPTION_MAGIC:
            raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
        self._socket.sendall(struct.pack(">I", _FIXED_NEWSTYLE_NO_ZEROES))
        option = struct.pack(">IH", 0, 0)
        self._socket.sendall(_OPTION.pack(_OPTION_MAGIC, _OPT_GO, len(option)) + option)
        size_bytes = None
        while True:
            magic, _, kind, length = _OPTION_REPLY.unpack(self._receive_bytes(_OPTION_REPLY.size))
            data = self._receive_bytes(length)
            if magic != _REPLY_OPTION_MAGIC or kind & _REP_ERROR:
                raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
            if kind == _REP_INFO and struct.unpack(">H", data[:2])[0] == _INFO_EXPORT:
                size_bytes = int(struct.unpack(">Q", data[2:10])[0])
            if kind == _REP_ACK and size_bytes is not None:
                return size_bytes

    def _receive_bytes(self, length: int) -> bytes:
        buffer = bytearray(length)
        self._receive_into(memoryview(buffer))
        return bytes(buffer)

    def _receive_into(self, view: memoryview) -> None:
        while view:
            count = self._socket.recv_into(view)
            if not count:
                raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            view = view[count:]
