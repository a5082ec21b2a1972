"""A store that is held: one path, that leads to the same directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snapfs.errors import SnapfsError
from snapfs.system.stores import hold_store, let_go


def test_a_view_cannot_name_a_directory_that_we_hold(tmp_path: Path) -> None:
    held = hold_store(tmp_path)
    try:
        assert hold_store(held) == held
        with pytest.raises(SnapfsError):
            hold_store(held, owner=os.getuid())
    finally:
        let_go(held)
