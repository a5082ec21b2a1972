"""A small image and its sealed store, for one format each; a released format's sample is never made again.

PYTHONPATH=tests/engine:. python tests/engine/sample_store.py
"""

from __future__ import annotations

import os
import random
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch
from uuid import UUID

from engine_rig import BOOT, Rig, pattern

from cow.disk.header import read_header, write_header
from cow.disk.layout import FORMAT_VERSION, Counter
from cow.mount.dump import dump

SAMPLES = Path(__file__).parent / "samples"
# Some of it does not compress.
OLD = pattern(6 * 4096, 42) + random.Random(42).randbytes(2 * 4096) + pattern(8 * 4096 - 1000, 43)
TIME_NS = 1_700_000_000_000_000_000


def fill(rig: Rig) -> None:
    """Every kind of block: in records of both kinds, free, written though free, released, owed."""
    rig.open(BOOT)
    rig.settle_free([(12, 14)])
    rig.write(0, pattern(4096 + 10, 43))
    rig.write(5 * 4096, pattern(4096, 47))
    rig.compactor.drain()
    rig.write(6 * 4096, pattern(2 * 4096, 48))
    rig.compactor.drain()
    rig.engine.cuts.release(3, 5)
    rig.give_back()
    rig.write(3 * 4096, pattern(4096, 44))
    rig.write(15 * 4096, pattern(3, 45))
    rig.write(12 * 4096, pattern(4096, 46))
    rig.compactor.drain()
    rig.engine.close()
    os.utime(rig.image_fd, ns=(TIME_NS, TIME_NS))
    rig.control[Counter.HEARTBEAT_NS] = rig.control[Counter.IMAGE_MTIME_NS] = TIME_NS
    assert rig.engine.seal()
    rig.abandon()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        rig = Rig(Path(name), OLD, staging_slots=16)
        with patch("cow.mount.recovery.uuid.uuid4", return_value=UUID(bytes=bytes(range(16)))):
            fill(rig)
        header = read_header(rig.store_path)
        assert header is not None
        fixed = replace(
            header,
            image_path="/srv/disk.img",
            cuts=(
                replace(
                    header.cut,
                    taken_at_ns=TIME_NS,
                    image_atime_ns=TIME_NS,
                    image_mtime_ns=TIME_NS,
                    snapshot_id=bytes(range(16, 32)),
                    holders=(bytes(range(32, 48)).hex(), bytes(range(48, 64)).hex()),
                ),
            ),
        )
        write_header(rig.store_path, fixed, rig.files)
        (rig.store_path / "lock").unlink()
        target = SAMPLES / f"format-{FORMAT_VERSION}"
        target.with_suffix(".dump").write_text("\n".join(dump(rig.store_path, rig.files, None)) + "\n")
        with tarfile.open(target.with_suffix(".tar.xz"), "w:xz") as tar:
            for path in (rig.image_path, rig.store_path):
                tar.add(path, path.name)
        rig.close()


if __name__ == "__main__":
    main()
