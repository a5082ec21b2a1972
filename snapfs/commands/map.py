"""`snapfs map`: what an image consists of, and which of its blocks are used.

For a mounted image the map of a snapshot and what that knows of each block; for another one, a map made here
and now, which counts every filesystem as wholly used that is not provably at rest.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from bitarray import bitarray
from bitarray.util import ones

from snapfs.chosen import read_chosen
from snapfs.client import request
from snapfs.commands.status import read_status
from snapfs.destination.access import NEW_MODE, Access
from snapfs.destination.consent import Consent
from snapfs.destination.place import check_apart, look_at
from snapfs.destination.result import new_result
from snapfs.errors import NotMountedError, SnapfsError
from snapfs.noted import open_cuts, place_of
from snapfs.options import DEFAULT_BLOCK_BYTES, check_block_bytes
from snapfs.protocol import GetMap, MapGiven
from snapfs.system.block_ioctl import size_bytes_of
from snapfs.system.discovery import find_store
from snapfs.system.file_kinds import open_readable
from snapfs.system.image_probe import check_image_size
from snapfs.system.store_files import read_store_file
from snapfs.usedmap.cells import Layers
from snapfs.usedmap.domain import json_extents
from snapfs.usedmap.result import ImageMap, Region
from snapfs.usedmap.scan import scan

MAP_VERSION = 2


def read_map(
    path: Path, block_bytes: int | None = None, snapshot: str | None = None, *, skip_swap: bool = False
) -> Layers:
    """The map of `path`: LIVE, SNAP or IMAGE of a mounted image, of which that `snapshot` or the newest is meant, or
    any other image."""
    if block_bytes is not None:
        check_block_bytes(block_bytes)
    try:
        store = find_store(path)
    except NotMountedError:
        if snapshot is not None:
            raise
        return Layers(_scan(path, block_bytes or DEFAULT_BLOCK_BYTES, skip_swap))
    if block_bytes is not None:
        raise SnapfsError(f"{path} is mounted with blocks of its own; leave out --block-size.", path=path)
    return _snapshot_layers(store, snapshot)


def image_name(path: Path) -> str:
    """What a picture of the map of `path` is to be called: the name of the image, whichever way it was named."""
    try:
        name: str = read_status(find_store(path))["view_name"]
    except NotMountedError:
        return path.name
    return name


@contextlib.contextmanager
def new_results(
    path: Path, wanted: Mapping[str, Path | None], consent: Consent, mode: int | None
) -> Iterator[dict[str, Path]]:
    """Paths to write what is `wanted` of the map to, by what it is called; they get their names at the end.

    SnapfsError when one may not be written, before anything is read.
    """
    check_apart(wanted)
    places = {what: look_at(file, {"the image": path}) for what, file in wanted.items() if file is not None}
    for place in places.values():
        consent.ask_for(place)
    with contextlib.ExitStack() as stack:
        access = _access(path).with_mode(mode) if places else None
        yield {
            what: stack.enter_context(new_result(place, consent, access))
            for what, place in places.items()
            if access is not None
        }


def _access(path: Path) -> Access:
    """A picture tells names and what is where, so it is as private as the image."""
    try:
        image = Path(read_status(find_store(path))["image"])
    except NotMountedError:
        image = path
    try:
        return Access.of(image)
    except OSError:
        return Access(NEW_MODE)


def _scan(path: Path, block_bytes: int, skip_swap: bool) -> ImageMap:
    try:
        fd = open_readable(path, "name an image or a view")
    except OSError as error:
        raise SnapfsError(f"{path} cannot be read: {error.strerror}; name an image or a view.", path=path) from error
    try:
        size_bytes = size_bytes_of(fd)
        check_image_size(path, size_bytes)
        return scan(fd, size_bytes, block_bytes, skip_swap=skip_swap)
    finally:
        os.close(fd)


def _snapshot_layers(store: Path, name: str | None) -> Layers:
    # First: a server that is stopped is not waited for as long as one with a large map.
    snapshot_id = str(read_chosen(store, name)["snapshot"]["id"])
    answer = request(store, GetMap(id=snapshot_id))
    reader = open_cuts(store)
    try:
        geometry, cut = reader.geometry, reader.cuts[place_of(reader, snapshot_id)]
        used = _used(store, answer, geometry.block_count)
        image_map = ImageMap(geometry.block_bytes, geometry.image_bytes, used, _regions(answer, geometry.image_bytes))
        settled, released = cut.settled.copy(), cut.released.copy()
        preserved = settled & ~released & ~cut.free.copy()
        return Layers(image_map, ~settled, preserved, released, cut.changed.copy())
    finally:
        reader.close()


def _used(store: Path, answer: MapGiven, block_count: int) -> bitarray:
    if answer.free_file is None:
        return ones(block_count, "little")
    free = bitarray(endian="little")
    free.frombytes(read_store_file(store, answer.free_file))
    return ~free[:block_count]


def _regions(answer: MapGiven, image_bytes: int) -> list[Region]:
    if answer.regions:
        return [Region.from_facts(region) for region in answer.regions]
    reason = "its map is being computed" if answer.state == "computing" else "every block is protected"
    return [Region("unknown", 0, image_bytes, reason=reason)]


def map_json(layers: Layers) -> Iterator[str]:
    """The map for programs as JSON text, in pieces; offsets and sizes in bytes."""
    image_map = layers.image_map
    head = json.dumps(
        {
            "version": MAP_VERSION,
            "image_bytes": image_map.size_bytes,
            "block_bytes": image_map.block_bytes,
            "regions": [region.facts() for region in image_map.regions],
        }
    )
    yield head.removesuffix("}") + ', "extents": '
    yield from json_extents(image_map)
    yield "}\n"
