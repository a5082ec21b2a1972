"""Names that others chose, for terminal or log: what would steer it or write a line of its own is escaped."""

from __future__ import annotations

import re
from typing import Final

# Controls, line and paragraph separators, bidirectional marks, and bytes that are no text.
_STEERING: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def shown(text: str) -> str:
    """`text` as one line without anything that steers a terminal."""
    return _STEERING.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
