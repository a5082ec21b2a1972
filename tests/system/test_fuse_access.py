"""FUSE missing, forbidden or half installed: tried in mount namespaces of their own, as root and as a user."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from real_system import NOBODY, become, in_child, libc_prctl, mount_call, own_mount_namespace

from snapfs.errors import SnapfsError
from snapfs.system.fuse_access import check_fuse_access

MS_BIND = 0x1000
PR_SET_NO_NEW_PRIVS = 38


def refusal(prepare: Callable[[], None], user: int | None = None, options: tuple[str, ...] = ()) -> str:
    """The sentence after `prepare` in a mount namespace of its own; "" when FUSE may be used."""

    def child() -> str:
        own_mount_namespace()
        prepare()
        if user is not None:
            become(user)
        try:
            check_fuse_access(options)
        except SnapfsError as error:
            return error.sentence
        return ""

    sentence = str(in_child(child))
    assert re.fullmatch(r"([^\n;]+; [^\n;]+\.)?", sentence)
    return sentence


FUSE_NUMBER = os.makedev(10, 229)
UNUSED_NUMBER = os.makedev(10, 254)


def dev(fuse_mode: int | None = 0o666, fuse_number: int = FUSE_NUMBER) -> None:
    """A /dev with nothing but null and, unless its mode is None, fuse."""
    mount_call("tmpfs", Path("/dev"), "tmpfs")
    make_node(Path("/dev/null"), 0o666, os.makedev(1, 3))
    if fuse_mode is not None:
        make_node(Path("/dev/fuse"), fuse_mode, fuse_number)


def make_node(path: Path, mode: int, number: int) -> None:
    os.mknod(path, stat.S_IFCHR | mode, number)
    path.chmod(mode)


def no_fusermount() -> None:
    dev()
    for path in Path("/usr/bin/fusermount3"), Path("/bin/fusermount3"), Path("/usr/local/bin/fusermount3"):
        if path.exists():
            mount_call("/dev/null", path.resolve(), "", MS_BIND)


def fuse_conf(text: str) -> Callable[[], None]:
    def prepare() -> None:
        dev()
        mount_call("tmpfs", Path("/mnt"), "tmpfs")
        conf = Path("/mnt/fuse.conf")
        conf.write_text(text)
        mount_call(str(conf), Path("/etc/fuse.conf"), "", MS_BIND)

    return prepare


def test_root_may_use_fuse() -> None:
    assert refusal(dev, options=("allow_other",)) == ""


def test_a_user_may_use_fuse() -> None:
    assert refusal(dev, user=NOBODY) == ""


def test_a_missing_device_is_named_with_the_module_to_load() -> None:
    sentence = refusal(lambda: dev(fuse_mode=None))
    assert "/dev/fuse is missing" in sentence
    assert "modprobe fuse" in sentence


def test_a_device_without_its_module_is_named() -> None:
    assert "the kernel has no FUSE loaded" in refusal(lambda: dev(fuse_number=UNUSED_NUMBER))


def test_a_device_that_may_not_be_opened_is_named() -> None:
    assert "this user may not open /dev/fuse" in refusal(lambda: dev(fuse_mode=0o600), user=NOBODY)


def test_a_user_without_fusermount_is_told_what_to_install() -> None:
    assert "install the package fuse3" in refusal(no_fusermount, user=NOBODY)


def test_root_needs_no_fusermount() -> None:
    assert refusal(no_fusermount) == ""


def test_a_fusermount_that_is_not_root_is_named() -> None:
    def prepare() -> None:
        dev()
        mount_call("tmpfs", Path("/mnt"), "tmpfs")
        helper = Path("/mnt/fusermount3")
        helper.write_bytes(Path("/usr/bin/fusermount3").read_bytes())
        helper.chmod(0o755)
        os.environ["PATH"] = "/mnt"

    assert "chmod u+s /mnt/fusermount3" in refusal(prepare, user=NOBODY)


def test_a_sandbox_that_grants_no_privileges_is_named() -> None:
    def prepare() -> None:
        dev()
        libc_prctl(PR_SET_NO_NEW_PRIVS, 1)

    assert "no_new_privs" in refusal(prepare, user=NOBODY)


@pytest.mark.parametrize("option", ["allow_other", "allow_root"])
def test_a_user_may_share_only_when_the_configuration_says_so(option: str) -> None:
    forbidden = refusal(fuse_conf("#user_allow_other\n"), user=NOBODY, options=(option,))
    assert f"The option {option} is not allowed" in forbidden
    assert "user_allow_other to /etc/fuse.conf" in forbidden
    assert refusal(fuse_conf("user_allow_other # yes\n"), user=NOBODY, options=(option,)) == ""


def test_other_options_need_no_configuration() -> None:
    assert refusal(fuse_conf(""), user=NOBODY, options=("noexec",)) == ""
