"""A raw stream that nobody has a manifest of: how long it is says only its end, and nothing that it is whole."""

from __future__ import annotations

from blake3 import blake3

from cow import MAX_IMAGE_BYTES
from snapfs.commands.whole_image import RESTORE, write_image
from snapfs.destination.consent import Consent
from snapfs.destination.place import Place
from snapfs.errors import SnapfsError
from snapfs.imager.extents import Extent
from snapfs.imager.manifest import Hashed, Manifest
from snapfs.imager.pace import Pace, yield_to_others
from snapfs.imager.progress import Meter, Report, silent
from snapfs.imager.stages import PIECE_BYTES
from snapfs.imager.stream import NAME, WAY_OUT, StreamReader
from snapfs.imager.target import FileTarget
from snapfs.options import format_size
from snapfs.system.block_ioctl import size_bytes_of


def restore_stream(
    place: Place, mode: int | None, rate_bytes_per_s: int | None, report: Report, consent: Consent
) -> Manifest:
    """Write what comes from the standard input: a new image is as long as that, one that is there has to be, and a
    device long enough."""
    reader = StreamReader()
    done = Manifest(0, "raw", ())

    def fill(target: FileTarget) -> None:
        nonlocal done
        yield_to_others()
        limit = MAX_IMAGE_BYTES if place.is_new else size_bytes_of(target.fd)
        done = _copied(reader, target, place, limit, Pace(rate_bytes_per_s), report)
        if place.is_new:
            target.end_at(done.image_bytes)
        elif not place.is_device and done.image_bytes < limit:
            raise _other_size(place, f"ends after {format_size(done.image_bytes)} of the", limit)

    size_bytes = 0 if place.status is None or place.is_device else place.status.st_size
    write_image(place, size_bytes, reader.access(), consent, mode, RESTORE, fill)
    return done


def _copied(
    reader: StreamReader, target: FileTarget, place: Place, limit: int, pace: Pace, report: Report
) -> Manifest:
    # Of how much it is done nobody can say while nobody knows where it ends.
    meter, hasher = Meter("restore", limit, silent if place.is_new else report), blake3()
    buffer, offset = memoryview(bytearray(PIECE_BYTES)), 0
    while count := _read(reader, buffer):
        if offset + count > limit:
            raise _other_size(place, "goes on behind the", limit)
        view = buffer[:count]
        pace.wait_for(count)
        hasher.update(view)
        target.write(view, offset)
        offset += count
        meter.advance(count)
    if not offset:
        raise SnapfsError(f"Nothing came from the standard input; see what whoever sends it says, and {WAY_OUT}.")
    meter = Meter("restore", offset, report)
    meter.advance(offset)
    meter.finish()
    return Manifest(offset, "raw", (Hashed(Extent(0, offset), hasher.digest()),))


def _read(reader: StreamReader, buffer: memoryview) -> int:
    try:
        return reader.read_some(buffer)
    except OSError as error:
        raise SnapfsError(f"{NAME} cannot be read: {error.strerror}; {WAY_OUT}.") from error


def _other_size(place: Place, how: str, limit: int) -> SnapfsError:
    return SnapfsError(
        f"{NAME} {how} {format_size(limit)} of {place.named}; name an image of its size, or a new one.",
        path=place.named,
    )
