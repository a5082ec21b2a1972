"""The rows of the table: what each measures, in which unit, and what snapfs is asked to reach.

A goal compares the median of snapfs with that of a peer in the same run: `factor` is the least ratio, or the
greatest where less is better. `above` allows so much more than the peer; `at_most` is a figure of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

SNAPFS = "snapfs"
QEMU = "qemu"
XFS = "xfs"
BTRFS = "btrfs"
PYFUSE3 = "pyfuse3"
LIBFUSE = "libfuse"
RAW = "raw"
DD = "dd"
PARTCLONE = "partclone"
BORG = "borg"
RESTIC = "restic"
# snapfs again, but for the one option that the row is about.
UNRELEASED = "unreleased"
# With one snapshot, and the newest of many.
ONE = "one"
NEWEST = "newest"

# With a snapshot first; the others are limits rather than rivals.
MOUNTED = (SNAPFS, QEMU, XFS, BTRFS, PYFUSE3, LIBFUSE, RAW)
IMAGERS = (SNAPFS, DD, QEMU, PARTCLONE)
NIGHTLIES = (SNAPFS, QEMU, BORG, RESTIC, PARTCLONE)
PEER_NAMES = (*MOUNTED, DD, PARTCLONE, BORG, RESTIC)
COLUMNS = (*PEER_NAMES, UNRELEASED, ONE, NEWEST)
WITH_SNAPSHOT = (SNAPFS, QEMU, XFS, BTRFS)


@dataclass(frozen=True)
class Goal:
    peer: str | None
    factor: float = 1.0
    above: float = 0.0
    at_most: float | None = None


@dataclass(frozen=True)
class Row:
    name: str
    unit: str
    work: str
    goals: tuple[Goal, ...] = ()
    less_is_better: bool = False
    peers: tuple[str, ...] = WITH_SNAPSHOT


def versus(**factors: float) -> tuple[Goal, ...]:
    return tuple(Goal(peer, factor) for peer, factor in factors.items())


FSYNC_GOALS = (Goal(QEMU), Goal(RAW, above=200))
OVER_FUSE = (SNAPFS, PYFUSE3, LIBFUSE, RAW)

MOUNT_ROWS = (
    Row("seq-burst", "MB/s", "1 MiB sequential direct, depth 4, first touch, 48 MiB", versus(qemu=2)),
    Row("seq", "MB/s", "the same, 512 MiB", versus(qemu=1)),
    Row("rand-qd1", "IOPS", "4 KiB random direct, depth 1, first touch", versus(qemu=4, xfs=1.5, btrfs=1.5)),
    Row("rand-qd16", "IOPS", "the same, depth 16", versus(qemu=4, xfs=1.2, btrfs=2.5)),
    Row("rand-buffered", "IOPS", "4 KiB random buffered, fsync at the end", versus(qemu=3, xfs=1, btrfs=1)),
    Row("seq-buffered", "IOPS", "4 KiB sequential buffered, fsync at the end", versus(qemu=5, xfs=1.5, btrfs=1.5)),
    Row("retouch-qd1", "IOPS", "4 KiB random direct, depth 1, already preserved", versus(qemu=1.5)),
    Row("retouch-qd16", "IOPS", "the same, depth 16", versus(qemu=2.5)),
    Row("free-write", "MB/s", "1 MiB sequential direct into free blocks of an ext4", versus(qemu=2)),
    Row("live-read-qd1", "IOPS", "4 KiB random direct reads, depth 1", versus(qemu=1.3), peers=MOUNTED),
    Row("live-read-qd16", "IOPS", "the same, depth 16", versus(qemu=2.5), peers=MOUNTED),
    Row("live-read-seq", "MB/s", "1 MiB sequential direct reads, depth 4", versus(qemu=2), peers=MOUNTED),
    Row("snap-read-cold", "MB/s", "the whole snapshot after seq and random writes, cold", versus(qemu=2)),
    Row("snap-read-warm", "MB/s", "the same again", versus(qemu=5)),
    Row(
        "fuse-price-qd1",
        "IOPS",
        "4 KiB random direct writes, depth 1, nothing owed",
        versus(pyfuse3=0.9, libfuse=1),
        peers=OVER_FUSE,
    ),
    Row("fuse-price-qd16", "IOPS", "the same, depth 16", versus(pyfuse3=0.9, libfuse=2), peers=OVER_FUSE),
    Row(
        "fuse-price-seq",
        "MB/s",
        "1 MiB sequential direct writes, nothing owed",
        versus(pyfuse3=0.9, libfuse=1),
        peers=OVER_FUSE,
    ),
    Row("fsync-p50", "µs", "4 KiB write + fsync, nothing owed, median", FSYNC_GOALS, True, MOUNTED),
    Row("fsync-p99", "µs", "the same, 99th percentile", versus(qemu=1), True, MOUNTED),
    Row("fsync-owed-p50", "µs", "4 KiB write + fsync, first touch, median", FSYNC_GOALS, True, MOUNTED),
    Row("fsync-owed-p99", "µs", "the same, 99th percentile", versus(qemu=1), True, MOUNTED),
    Row("buffer", "MiB", "disk space taken by what seq preserved", versus(qemu=0.55), True),
    Row("memory", "MiB", "peak of all server processes together", (Goal(None, at_most=200),), True, (SNAPFS, QEMU)),
)
BACKUP_ROWS = (
    Row(
        "backup-raw",
        "MB/s",
        "used bytes of an unmounted image into a file",
        versus(dd=1, qemu=1, partclone=1),
        peers=IMAGERS,
    ),
    Row("backup-qcow2", "MB/s", "the same into a qcow2", versus(qemu=1), peers=(SNAPFS, QEMU)),
    Row(
        "backup-size",
        "×",
        "time for the same files in 1 TiB against the usual image",
        (Goal(None, at_most=1.3),),
        True,
        (SNAPFS,),
    ),
    Row(
        "backup-release",
        "MiB",
        "peak of the store on disk, all used blocks rewritten during a backup with --release",
        versus(unreleased=0.5),
        True,
        (SNAPFS, UNRELEASED),
    ),
    Row(
        "backup-release-end",
        "MiB",
        "the store on disk when both are done",
        versus(unreleased=0.25),
        True,
        (SNAPFS, UNRELEASED),
    ),
)
CHAIN_ROWS = (
    Row("chain-seq-10", "MB/s", "as seq, with 10 snapshots", versus(one=0.9)),
    Row("chain-seq-100", "MB/s", "with 100", versus(one=0.9)),
    Row("chain-rand-10", "IOPS", "as rand-qd16, with 10 snapshots", versus(one=0.9)),
    Row("chain-rand-100", "IOPS", "with 100", versus(one=0.9)),
    Row("chain-read-oldest", "MB/s", "the oldest of 100 snapshots whole, cold", versus(newest=0.5)),
    Row("chain-cut-ms", "ms", "one more snapshot when there are 100", versus(one=2), True),
    Row("chain-delete-ms", "ms", "one in the middle of 100, until nothing of it is left", (), True),
    Row(
        "chain-memory",
        "MiB",
        "resident memory of all servers for each of 100 snapshots of a hole of 1 TiB",
        (Goal(None, at_most=2),),
        True,
        (SNAPFS,),
    ),
)
NIGHT_ROWS = (
    Row(
        "increment",
        "s",
        "the second backup of an image, 64 MiB and 256 single blocks changed",
        versus(borg=1, restic=1, partclone=1),
        True,
        NIGHTLIES,
    ),
    Row(
        "increment-1t",
        "s",
        "the same of a sparse image of 1 TiB",
        versus(borg=1, restic=1, partclone=1),
        True,
        NIGHTLIES,
    ),
    Row(
        "increment-share",
        "×",
        "1 of 16 GiB changed in 1 TiB, against the full backup",
        (Goal(None, at_most=0.1),),
        True,
        (SNAPFS,),
    ),
    Row(
        "increment-cpu",
        "s",
        "CPU time of the commands of a night in which nothing changed, 1 TiB",
        (Goal(None, at_most=0.5),),
        True,
        (SNAPFS,),
    ),
)
# A snapshot, and a file with real holes; the size of a repository says more of how it compresses.
BESIDE_HOLES = (SNAPFS, RAW)
HOLE_ROWS = (
    Row("holes-cp", "s", "cp of a snapshot of which a quarter is used", (), True, BESIDE_HOLES),
    Row("holes-tar", "s", "tar -S of it", (), True, BESIDE_HOLES),
    Row("holes-rsync", "s", "rsync -S of it", (), True, BESIDE_HOLES),
    Row("holes-qemu", "s", "qemu-img convert of it", (), True, BESIDE_HOLES),
    Row("holes-borg", "s", "borg create --sparse of it, the first", (), True, BESIDE_HOLES),
    Row("holes-restic", "s", "restic backup of it, the first", (), True, BESIDE_HOLES),
    Row("holes-cp-size", "MiB", "what the copy takes on the disk", versus(raw=1.05), True, BESIDE_HOLES),
    Row("holes-tar-size", "MiB", "the same", versus(raw=1.05), True, BESIDE_HOLES),
    Row("holes-rsync-size", "MiB", "the same", versus(raw=1.05), True, BESIDE_HOLES),
    Row("holes-qemu-size", "MiB", "the same", versus(raw=1.05), True, BESIDE_HOLES),
)
ROWS = (*MOUNT_ROWS, *BACKUP_ROWS, *CHAIN_ROWS, *NIGHT_ROWS, *HOLE_ROWS)
# A name for all rows of a kind.
SECTIONS = {"mount": MOUNT_ROWS, "backup": BACKUP_ROWS, "chain": CHAIN_ROWS, "nights": NIGHT_ROWS, "holes": HOLE_ROWS}
ROWS_BY_NAME = {row.name: row for row in ROWS}


def goal_ratio(row: Row, goal: Goal, ours: float, theirs: float | None) -> tuple[float, bool]:
    """What snapfs reached against one goal, and whether that is enough."""
    if goal.at_most is not None:
        return ours / goal.at_most, ours <= goal.at_most
    if theirs is None:
        raise ValueError(f"{row.name} has a goal against {goal.peer}, which was not measured")
    if goal.above:
        return ours - theirs, ours <= theirs + goal.above
    ratio = ours / theirs
    return ratio, ratio <= goal.factor if row.less_is_better else ratio >= goal.factor


def chosen_rows(names: tuple[str, ...]) -> set[str]:
    """Rows and sections by name; all rows when none is named."""
    return {row.name for name in names for row in SECTIONS.get(name) or (ROWS_BY_NAME[name],)} or set(ROWS_BY_NAME)
