"""Free clusters of an NTFS volume, from $Bitmap, if nothing says that it may be wrong.

Rules
1. Clean: no flag in $Volume but harmless settings, a $LogFile at rest (`ntfs_log`), no hibernated Windows
   (`ntfs_hibernation`), no shadow copies (`ntfs_shadow`).
2. $MFT and $MFTMirr agree in the records they share.
3. $Bitmap covers every cluster, was written wholly, and calls the clusters of the system files used.
4. $Bitmap calls exactly those clusters used that the records of the MFT claim (`ntfs_claims`), each of them once.
   It carries no checksum: that is the proof that it has lost nothing a file needs.
5. What follows the last cluster (a remainder, the backup boot sector) is outside the map: used.

One state cannot be seen in the image: ntfs-3g mounted read-write marks neither the volume nor the log.
A caller that knows of such a mount must not ask for a map.

Layout and its sources: `ntfs_layout`.
"""

from __future__ import annotations

from bitarray import bitarray

from snapfs.usedmap import ntfs_layout as layout
from snapfs.usedmap.claims import Claims
from snapfs.usedmap.ntfs_claims import claim_clusters
from snapfs.usedmap.ntfs_hibernation import check_not_hibernated
from snapfs.usedmap.ntfs_log import check_log
from snapfs.usedmap.ntfs_mft import RecordTable, open_records
from snapfs.usedmap.ntfs_records import (
    Stream,
    Volume,
    checked_record,
    data_stream,
    find_attribute,
    open_mft,
    open_volume,
    record_used,
    resident_value,
)
from snapfs.usedmap.ntfs_shadow import check_no_shadow_copies
from snapfs.usedmap.result import FreeMap, MapError
from snapfs.usedmap.source import Source

# The Boot file is record 7; its clusters and those of these files must be used in any true $Bitmap.
_BOOT_NO = 7
_SYSTEM_FILES = (layout.MFT_MIRROR_NO, layout.LOG_FILE_NO, layout.BITMAP_NO, _BOOT_NO)


def read_free_map(source: Source, *, frozen_by_us: bool = False) -> FreeMap:
    """Free clusters; `frozen_by_us` changes nothing, no driver of NTFS freezes."""
    volume = open_volume(source)
    mft = open_mft(volume)
    check_no_shadow_copies(source)
    _check_mirror(volume, mft)
    _check_state(volume.record(mft, layout.VOLUME_NO))
    check_log(volume, data_stream(volume, volume.record(mft, layout.LOG_FILE_NO)))
    table = open_records(volume, mft)
    check_not_hibernated(volume, table.records)
    bitmap = data_stream(volume, volume.record(mft, layout.BITMAP_NO))
    # One bitmap at a time: a proof consumes what it is given, and a bitmap can be half a gigabyte.
    _prove(volume, mft, table, bitmap)
    return FreeMap(volume.cluster_bytes, 0, _read_bitmap(volume, bitmap))


def _prove(volume: Volume, mft: Stream, table: RecordTable, bitmap: Stream) -> None:
    """Raise `MapError` unless $Bitmap calls used exactly what the records of the MFT claim."""
    bits = _read_bitmap(volume, bitmap)
    _check_system_files(volume, mft, bits)
    bits.invert()
    claims = Claims(bits, lambda cluster: not volume.read(bitmap, cluster // 8, 1)[0] >> cluster % 8 & 1)
    claim_clusters(volume, table, claims)
    claims.check_none_left()


def _check_mirror(volume: Volume, mft: Stream) -> None:
    mirror_offset = volume.mirror_cluster * volume.cluster_bytes
    for number in range(layout.MIRRORED_RECORDS):
        raw = volume.source.read(mirror_offset + number * volume.record_bytes, volume.record_bytes)
        mirrored = checked_record(raw, f"MFT record {number} in $MFTMirr")
        if record_used(mirrored) != record_used(volume.record(mft, number)):
            raise MapError("has an $MFTMirr that differs from its $MFT")


def _check_state(record: bytes) -> None:
    attribute = find_attribute(record, layout.VOLUME_INFORMATION)
    value = resident_value(attribute) if attribute else b""
    if len(value) < layout.VOLUME_STATE.size:
        raise MapError("does not say whether it is clean")
    major, minor, flags = layout.VOLUME_STATE.unpack_from(value)
    if (major, minor) not in layout.VOLUME_VERSIONS:
        raise MapError(f"has the unknown version {major}.{minor}")
    if flags & layout.VOLUME_DIRTY:
        raise MapError("is marked dirty")
    if flags & ~layout.VOLUME_NO_SHORT_NAMES:
        raise MapError(f"has unfinished work (volume flags {flags:#06x})")


def _read_bitmap(volume: Volume, stream: Stream) -> bitarray:
    needed_bytes = (volume.cluster_count + 7) // 8
    if stream.initialised_bytes < needed_bytes:
        raise MapError("has a $Bitmap that does not cover the volume")
    bits = bitarray(8 * needed_bytes, endian="little")
    with memoryview(bits) as view:
        done = 0
        for offset, length in volume.pieces(stream, 0, needed_bytes):
            with view[done : done + length] as part:
                volume.source.readinto(offset, part)
            done += length
    bits.invert()
    del bits[volume.cluster_count :]
    return bits


def _check_system_files(volume: Volume, mft: Stream, free: bitarray) -> None:
    streams = [mft, *(data_stream(volume, volume.record(mft, number)) for number in _SYSTEM_FILES)]
    runs = [run for stream in streams for run in stream.runs]
    if free[0] or any(free.find(1, run.start, run.start + run.length) >= 0 for run in runs):
        raise MapError("has a $Bitmap that calls its own system files free")
    if streams[1].runs[0].start != volume.mirror_cluster:
        raise MapError("has an $MFTMirr that is not where its boot sector says")
