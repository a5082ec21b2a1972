"""What a stretch of the image is: libblkid's answer.

Source: util-linux libblkid, the low-level probing API. It knows the signatures of all common filesystems,
containers (LVM, LUKS, MD) and partition tables, checks superblock checksums, and says *ambivalent* when more
than one signature fits. An ambivalent stretch has no trustworthy map: whichever filesystem is stale, its free
blocks may be the other one's files. libblkid itself tolerates a FAT (among others) beside another filesystem, and
on floppies everything; we do not.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_size_t, c_uint, c_void_p
from dataclasses import dataclass
from functools import cache

from snapfs.usedmap.result import MapError

_SUPERBLOCK_LABEL, _SUPERBLOCK_UUID, _SUPERBLOCK_TYPE = 1 << 1, 1 << 3, 1 << 5
_FOUND, _NOTHING, _AMBIVALENT = 0, 1, -2


@dataclass(frozen=True)
class Signature:
    """blkid's TYPE (empty: nothing known), label and uuid; `others` are the kinds whose signatures fit as well."""

    kind: str = ""
    label: str = ""
    uuid: str = ""
    others: frozenset[str] = frozenset()


def probe_filesystem(fd: int, offset: int, length: int) -> Signature:
    """Which filesystem or container is at `offset`; `MapError` when several fit or the probe fails."""
    with _new_probe(fd, offset, length) as probe:
        library = _library()
        library.blkid_probe_enable_superblocks(probe, 1)
        library.blkid_probe_set_superblocks_flags(probe, _SUPERBLOCK_LABEL | _SUPERBLOCK_UUID | _SUPERBLOCK_TYPE)
        if not _found(library.blkid_do_safeprobe(probe)):
            return Signature()
        kind, label, uuid = (_value(probe, name) for name in (b"TYPE", b"LABEL", b"UUID"))
        return Signature(kind, label, uuid, frozenset(_all_kinds(probe) - {kind}))


def _all_kinds(probe: c_void_p) -> set[str]:
    """Every kind whose signature fits, one after the other."""
    library, kinds = _library(), set[str]()
    library.blkid_reset_probe(probe)
    while _found(library.blkid_do_probe(probe)):
        kinds.add(_value(probe, b"TYPE"))
    return kinds


def probe_table(fd: int, offset: int, length: int, sector_bytes: int) -> str:
    """The kind of the partition table at `offset` ("dos", "gpt", "bsd" ...), empty when there is none."""
    with _new_probe(fd, offset, length) as probe:
        library = _library()
        library.blkid_probe_set_sectorsize(probe, sector_bytes)
        library.blkid_probe_enable_superblocks(probe, 0)
        library.blkid_probe_enable_partitions(probe, 1)
        if not _found(library.blkid_do_safeprobe(probe)):
            return ""
        return _value(probe, b"PTTYPE")


def _found(outcome: int) -> bool:
    if outcome == _AMBIVALENT:
        raise MapError("carries the signatures of more than one filesystem")
    if outcome not in (_FOUND, _NOTHING):
        raise MapError("could not be probed")
    return outcome == _FOUND


@contextmanager
def _new_probe(fd: int, offset: int, length: int) -> Iterator[c_void_p]:
    library = _library()
    probe = c_void_p(library.blkid_new_probe())
    if not probe:
        raise MapError("could not be probed for lack of memory")
    try:
        if library.blkid_probe_set_device(probe, fd, offset, length) != 0:
            raise MapError("could not be read by the probe")
        yield probe
    finally:
        library.blkid_free_probe(probe)


def _value(probe: c_void_p, name: bytes) -> str:
    text = c_char_p()
    if _library().blkid_probe_lookup_value(probe, name, byref(text), None) != 0 or text.value is None:
        return ""
    return text.value.decode("utf-8", "replace")


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libblkid.so.1", use_errno=True)
    except OSError as error:
        raise MapError("cannot be recognised because libblkid.so.1 is not installed") from error
    library.blkid_new_probe.restype = c_void_p
    library.blkid_free_probe.argtypes = [c_void_p]
    library.blkid_free_probe.restype = None
    library.blkid_probe_set_device.argtypes = [c_void_p, c_int, c_int64, c_int64]
    library.blkid_probe_set_sectorsize.argtypes = [c_void_p, c_uint]
    library.blkid_probe_enable_superblocks.argtypes = [c_void_p, c_int]
    library.blkid_probe_set_superblocks_flags.argtypes = [c_void_p, c_int]
    library.blkid_probe_enable_partitions.argtypes = [c_void_p, c_int]
    library.blkid_do_safeprobe.argtypes = [c_void_p]
    library.blkid_do_probe.argtypes = [c_void_p]
    library.blkid_reset_probe.argtypes = [c_void_p]
    library.blkid_reset_probe.restype = None
    library.blkid_probe_lookup_value.argtypes = [c_void_p, c_char_p, POINTER(c_char_p), POINTER(c_size_t)]
    return library
