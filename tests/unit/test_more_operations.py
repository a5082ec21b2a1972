"""Operations are added to a table that is known and has none of them, and to no other."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Each makes one session, as pyfuse3 does, with a table of `size` bytes of which the pointer number `taken` is set.
# In a process of its own: there is one session, and no way back.
MAKE_SESSION = """
import ctypes, sys
from snapfs.fuse import more_operations
class View: pass
class Args(ctypes.Structure):
    _fields_ = [("argc", ctypes.c_int), ("argv", ctypes.POINTER(ctypes.c_char_p)), ("allocated", ctypes.c_int)]
size, taken, is_handled, sessions = map(int, sys.argv[1:])
if is_handled:
    more_operations.hand_over_to(View())
make = ctypes.CDLL(None).fuse_session_new
make.restype = ctypes.c_void_p
table = (ctypes.c_void_p * 1024)()
if taken >= 0:
    table[taken] = 1
for _ in range(sessions):
    args = Args(1, (ctypes.c_char_p * 2)(b"test", None), 0)
    assert make(ctypes.byref(args), table, ctypes.c_size_t(size), None)
print(more_operations.why_not())
"""
POINTER_BYTES = 8
# Places in the table of libfuse 3, which only grows.
FALLOCATE, LSEEK = 40, 43
SIZE = (LSEEK + 1) * POINTER_BYTES


def why_not(size: int = SIZE, taken: int = -1, *, is_handled: bool = True, sessions: int = 1) -> str:
    words = map(str, (size, taken, int(is_handled), sessions))
    done = subprocess.run(
        [sys.executable, "-c", MAKE_SESSION, *words], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_table_that_has_neither_gets_both() -> None:
    assert why_not() == "None"


@pytest.mark.parametrize("taken", [FALLOCATE, LSEEK])
def test_one_that_has_one_of_them_stays_as_it_is(taken: int) -> None:
    assert why_not(taken=taken) == "pyfuse3 has operations of its own for it"


@pytest.mark.parametrize("size", [SIZE - POINTER_BYTES, 8192])
def test_one_of_an_unknown_size_stays_as_it_is(size: int) -> None:
    assert why_not(size) == "the table of operations has an unknown size"


def test_a_session_that_nobody_handles_stays_as_it_is() -> None:
    assert why_not(is_handled=False) == "nobody handles them"


def test_one_that_is_made_by_another_function_is_told_of() -> None:
    assert why_not(sessions=0) == "pyfuse3 makes its session in another way"
