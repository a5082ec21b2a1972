"""A round from its seed: an image, the options of its mount, and steps, some of them faults. The same seed is the
same round."""

from __future__ import annotations

import random
from dataclasses import dataclass

STEPS = {
    "write": 30,
    "sync": 12,
    "read-live": 8,
    "read-snap": 10,
    "cut": 5,
    "release": 3,
    "limit": 2,
    "fill": 3,
    "drain": 3,
    "stop": 3,
    "kill": 4,
    "foreign": 2,
    "rename": 2,
    "closed": 2,
}
SERVERS = ("supervisor", "live", "snapshot", "compactor", "all")


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before the round begins."""

    seed: int
    image_bytes: int
    options: tuple[str, ...]
    keeps_store: bool
    policy: str
    bad_sectors: tuple[int, ...]
    steps: tuple[str, ...]


def make_plan(seed: int, step_count: int) -> Plan:
    draw = random.Random(seed)
    block = draw.choice(["512", "4K", "4K", "4K", "64K", "1M"])
    policy = draw.choice(["break-snapshot", "break-snapshot", "break-write", "wait"])
    options = [
        f"--block-size={block}",
        f"--protect={draw.choice(['all', 'used'])}",
        f"--on-overflow={policy}",
        f"--durability={draw.choice(['process', 'process', 'power'])}",
        f"--cache={draw.choice(['writeback', 'writethrough'])}",
    ]
    if draw.random() < 0.3:
        options.append(f"--buffer-limit={draw.choice(['1M', '2M', '8M'])}")
    image_bytes = draw.choice([1, 4, 8]) * (1 << 20) + draw.choice([0, 0, 512, 4096 + 512])
    sectors = image_bytes // 4096
    bad = tuple(sorted({draw.randrange(sectors) * 8 for _ in range(3)})) if draw.random() < 0.2 else ()
    steps = tuple(draw.choices(list(STEPS), list(STEPS.values()), k=step_count))
    return Plan(seed, image_bytes, tuple(options), draw.random() < 0.4, policy, bad, steps)
