"""Does the bitmap of a volume call used whatever the volume's files claim?

A bitmap without a checksum is only believed as far as files and directories bear it out. One `Claims` is fed with
every cluster that they name:

1. Each of them must be used by the bitmap: one that is not shows that the bitmap has lost bits, and those of
   other clusters may be lost too.
2. No cluster is claimed twice: of two files on the same cluster one has a wrong list, and its true clusters are
   claimed by nobody.

3. In the end none is left that is used and claimed by nobody: something has got lost that named it, a directory
   perhaps, and that may have named clusters whose bits are lost.

So what is claimed never exceeds the volume, and the time for it is bounded by the volume too. What cannot be
seen: a lost bit of a cluster that nothing names.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from bitarray import bitarray
from numpy.typing import NDArray

from snapfs.usedmap.result import MapError


class Claims:
    """Clusters that are used and claimed by nobody yet; `used` is consumed.

    `is_free` says of one cluster what the bitmap says, to name the reason when a claim fails.
    """

    def __init__(self, used: bitarray, is_free: Callable[[int], bool]) -> None:
        self._unclaimed = used
        self._is_free = is_free

    def add(self, start: int, end: int) -> None:
        """Claim the clusters from `start` to before `end`, which are inside the volume."""
        at = self._unclaimed.find(0, start, end)
        if at >= 0:
            raise self._refusal(at)
        self._unclaimed[start:end] = 0

    def add_all(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        """Claim many stretches; the same as `add` for each."""
        unclaimed = self._unclaimed
        find = unclaimed.find
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            at = find(0, start, end)
            if at >= 0:
                raise self._refusal(at)
            unclaimed[start:end] = 0

    def check_none_left(self) -> None:
        """Raise `MapError` when a cluster is used that nothing has claimed."""
        if self._unclaimed.any():
            raise MapError("has clusters in use that no file claims")

    def _refusal(self, cluster: int) -> MapError:
        if self._is_free(cluster):
            return MapError("has files in clusters that its bitmap calls free")
        return MapError("has files that claim the same clusters")
