"""The store is removed while it is in use: both views go on, and can be unmounted."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal

import pytest
from ground import Ground
from mounted import snapfs

OLD, NEW = os.urandom(4 << 20), os.urandom(1 << 20)


@pytest.mark.alone  # it asks about all instances
def test_a_store_removed_under_its_views_leaves_them_whole_and_unmountable(ground: Ground) -> None:
    view = ground.mounted(ground.image(OLD), "--protect", "all")
    view.expect_log("No such file or directory|is missing|could not be told|started again")
    with view.live_file.open("r+b", buffering=0) as file:
        file.write(NEW[:8192])
        os.fsync(file.fileno())
        # Nobody may make a file in it meanwhile.
        view.processes["compactor"].send(signal.SIGSTOP)
        try:
            shutil.rmtree(view.store)
        finally:
            view.processes["compactor"].send(signal.SIGCONT)
        file.write(NEW[8192:])
        os.fsync(file.fileno())
    with view.snap_file.open("rb", buffering=0) as file:
        for at in range(0, len(OLD), 4096):
            # What had gone from the ring to a segment is lost with it.
            with contextlib.suppress(OSError):
                assert os.pread(file.fileno(), 4096, at) == OLD[at : at + 4096]
        assert os.pread(file.fileno(), 1 << 20, 3 << 20) == OLD[3 << 20 :]
    assert view.live_file.read_bytes() == NEW + OLD[len(NEW) :]
    for words in (["status"], ["status", view.live], ["snapshot", view.live]):
        asked = snapfs(*words)
        assert asked.returncode == (4 if words == ["status"] else 1)
        assert f"The store {view.store} was removed under the views of {view.image}" in asked.stderr
    done = snapfs("umount", view.live)
    assert (done.returncode, done.stderr.count("Traceback")) == (4, 0), done.stderr
    assert "was removed while it was in use" in done.stderr
    view.await_end()
    assert view.image.read_bytes() == NEW + OLD[len(NEW) :]
