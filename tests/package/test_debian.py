"""The Debian package on a clean machine with systemd: installed, used, removed and purged, in this order."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine_rig import Machine, booted, clean_root

from tests.machine import run, wait_until

pytestmark = pytest.mark.package
ROOT = Path(__file__).parents[2]
ENABLED = ("/etc/systemd/system/", "/var/lib/systemd/timers/")
REMEMBERED = "/var/lib/systemd/deb-systemd-helper-enabled/"
CONFIGURATION = """\
IMAGE=/srv/disk.img
LIVE=/mnt/live
SNAP=/mnt/snap
OPTIONS=store=/srv/store,protect=all
BACKUP_TO=/srv/backups/
BACKUP_OPTIONS=--cut
PRUNE_OPTIONS="--keep-last 1"
"""


@pytest.fixture(scope="module")
def package() -> Path:
    run(ROOT / "scripts/package", timeout_s=1200)
    (deb,) = (ROOT / "dist").glob("*.deb")
    return deb


@pytest.fixture(scope="module")
def machine(package: Path) -> Iterator[Machine]:
    """With the package installed, and nothing else that its distribution does not have."""
    place = Path(tempfile.mkdtemp(prefix="snapfs-package-", dir="/var/tmp"))
    root = place / "root"
    try:
        clean_root(root)
        shutil.copy(package, root / "snapfs.deb")
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        with booted(root) as machine:
            machine.run("apt-get update && apt-get install -y --no-install-recommends /snapfs.deb qemu-utils")
            machine.run("mkdir -p /mnt/live /mnt/snap /srv/backups && truncate -s 8M /srv/disk.img")
            (root / "etc/snapfs/disk.conf").write_text(CONFIGURATION)
            yield machine
    finally:
        shutil.rmtree(place)


def await_end(machine: Machine) -> None:
    """Of an instance whose store is not kept."""
    wait_until(lambda: machine.run("ls /srv") == "backups\ndisk.img", what="the end of the instance")


def named(machine: Machine) -> set[str]:
    """What there is by the name of the package, but for the file that it was installed from, and what dpkg and man
    have noted."""
    found = machine.run("find / -xdev -name '*snapfs*' -not -path '/proc/*'").split()
    theirs = ("/snapfs.deb", "/var/lib/dpkg/", "/var/cache/man/")
    return {path for path in found if not path.startswith(theirs)}


def taken_at(machine: Machine) -> str:
    """Of the snapshot that is shown; that there is none is a failure."""
    return machine.run("snapfs status --json /mnt/live | tr , '\\n' | grep --max-count 1 taken_at")


def test_lintian_finds_nothing(package: Path) -> None:
    done = subprocess.run(
        ["lintian", "--allow-root", package], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_units_are_right_where_they_are_installed(machine: Machine) -> None:
    assert machine.run("systemd-analyze verify --man=no /lib/systemd/system/snapfs* 2>&1") == ""


def test_man_pages_are_found(machine: Machine) -> None:
    assert "--protect [used|all]" in machine.run("man snapfs-mount | cat")


def test_a_line_of_fstab_mounts_it(machine: Machine) -> None:
    machine.run("echo '/srv/disk.img /mnt/live fuse.snapfs nofail,snap=/mnt/snap 0 0' >>/etc/fstab")
    machine.run("mount /mnt/live")
    assert machine.run("stat -c %s /mnt/snap/disk.img") == str(8 << 20)
    machine.run("umount /mnt/live")
    await_end(machine)


def test_systemd_mounts_and_unmounts_it_from_fstab(machine: Machine) -> None:
    machine.run("systemctl daemon-reload && systemctl start mnt-live.mount")
    assert machine.run("stat -c %s /mnt/snap/disk.img") == str(8 << 20)
    machine.run("systemctl stop mnt-live.mount")
    await_end(machine)
    machine.run("sed -i '/fuse.snapfs/d' /etc/fstab && systemctl daemon-reload")


def test_the_service_has_started_when_both_views_answer(machine: Machine) -> None:
    machine.run("systemctl enable --now snapfs@disk.service")
    assert machine.run("stat -c %s /mnt/live/disk.img /mnt/snap/disk.img").split() == [str(8 << 20)] * 2
    status = machine.run("systemctl show --property StatusText snapfs@disk.service")
    assert status == "StatusText=/srv/disk.img at /mnt/live, its snapshot at /mnt/snap"


def test_one_that_was_killed_is_carried_on(machine: Machine) -> None:
    machine.run("printf new | dd of=/mnt/live/disk.img conv=notrunc,fsync")
    before = taken_at(machine)
    machine.run("systemctl kill --signal KILL snapfs@disk.service")
    wait_until(lambda: machine.try_run("head -c 3 /mnt/live/disk.img").stdout == "new")
    wait_until(lambda: machine.try_run("cmp -n 3 /mnt/snap/disk.img /dev/zero").returncode == 0)
    assert taken_at(machine) == before


def test_the_unit_makes_a_backup_and_the_timer_waits_for_the_next(machine: Machine) -> None:
    for _ in range(2):
        machine.run("systemctl start snapfs-backup@disk.service")
    # Of two, those that PRUNE_OPTIONS keeps.
    assert len(machine.run("snapfs backups --json /srv/backups | tr , '\\n' | grep '\"name\"'").splitlines()) == 1
    machine.run("systemctl enable --now snapfs-backup@disk.timer")
    assert "snapfs-backup@disk.service" in machine.run("systemctl list-timers --no-pager")


def test_after_an_upgrade_the_service_goes_on_and_the_new_units_are_known(machine: Machine) -> None:
    # As if the installed ones were those of an older version.
    machine.run("touch -d @1 /lib/systemd/system/snapfs*@.* && systemctl daemon-reload")
    pid = machine.run("systemctl show --property MainPID snapfs@disk.service")
    machine.run("apt-get install -y --reinstall /snapfs.deb")
    assert machine.run("systemctl show --property MainPID snapfs@disk.service") == pid
    assert machine.run("systemctl show --property NeedDaemonReload snapfs@disk.service") == "NeedDaemonReload=no"


def test_the_service_ends_with_everything_written(machine: Machine) -> None:
    machine.run("systemctl stop snapfs@disk.service")
    assert machine.run("head -c 3 /srv/disk.img") == "new"
    assert machine.run("systemctl show --property Result snapfs@disk.service") == "Result=success"
    machine.run("systemctl start snapfs@disk.service")


def test_removal_ends_what_is_mounted_and_leaves_stores_and_configuration(machine: Machine) -> None:
    machine.run("apt-get remove -y snapfs")
    assert machine.try_run("grep fuse.snapfs /proc/mounts").stdout == ""
    # Instances stay enabled, as they are configured, and Debian's helper remembers which units there were.
    assert {path for path in named(machine) if not path.startswith((*ENABLED, REMEMBERED))} == {"/etc/snapfs"}
    assert machine.run("ls /etc/snapfs /srv") == "/etc/snapfs:\ndisk.conf\n\n/srv:\nbackups\ndisk.img\nstore"


def test_purge_removes_the_configuration_too(machine: Machine) -> None:
    machine.run("apt-get purge -y snapfs")
    assert named(machine) == set()
    assert machine.run("ls /srv") == "backups\ndisk.img\nstore"
