"""The campaign of readers: a process for each snapshot of a chain, while everything is done to it, round after round.

Who is quicker is another matter each time, so the same seed may have to be played often to see a fault again:

    scripts/torture readers --seed S --rounds 20 --again
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path
from unittest import mock

from busy_chain import BusyChain, Plan

import cow.disk.mapped_file
from cow.disk.filesystems import Storing
from cow.disk.layout import Durability


def plan_of(seed: int, cuts: int) -> tuple[Plan, Storing]:
    dice = random.Random(seed)
    durability, storing = dice.choice(list(Durability)), dice.choice([Storing.MAPPED, Storing.WRITTEN])
    return Plan(seed, durability, cuts, dice.randint(2, 8), dice.random() < 0.3), storing


def play(plan: Plan, storing: Storing) -> dict[str, int]:
    """What was done in one round; AssertionError: what was wrong."""
    directory = Path(tempfile.mkdtemp(prefix="snapfs-readers-", dir="/var/tmp"))
    chain = BusyChain(directory, plan)
    try:
        with mock.patch.object(cow.disk.mapped_file, "storing_on", return_value=storing):
            chain.run()
        return dict(chain.counts)
    finally:
        chain.rig.close()
        shutil.rmtree(directory)


def main(arguments: list[str]) -> int:
    """The command `scripts/torture readers`; 1 when a round found a fault."""
    parser = argparse.ArgumentParser(prog="scripts/torture readers", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="of the first round"
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--cuts", type=int, default=100, help="in each round (default 100)")
    parser.add_argument("--again", action="store_true", help="the same seed in each round")
    options = parser.parse_args(arguments)
    faults = 0
    for number in range(options.rounds):
        plan, storing = plan_of(options.seed + (0 if options.again else number), options.cuts)
        started_s = time.monotonic()
        try:
            said = f"right, {play(plan, storing)}"
        except AssertionError as fault:
            faults += 1
            again = f"scripts/torture readers --seed {plan.seed} --cuts {plan.cuts} --again"
            said = f"FAULT: {fault}\n    {again}"
        print(f"{plan} {storing.name}: {time.monotonic() - started_s:.1f} s, {said}", flush=True)
    print(f"{options.rounds} rounds, {faults} faults")
    return 1 if faults else 0
