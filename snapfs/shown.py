"""Names that others chose, as people read them: what would steer a terminal, or write a line of its own, is escaped.

Everything that people read goes through here: results and messages (`cli.output`), the log, pictures of a map.
What programs read (JSON) has names as they are.
"""

from __future__ import annotations

import re
from typing import Final

# Controls, line and paragraph separators, bidirectional marks, bytes that are no text, and what XML may not hold.
_STEERING: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
)


def shown(text: str) -> str:
    """`text` as one line without anything that steers a terminal."""
    return _STEERING.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
