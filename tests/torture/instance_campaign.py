"""The campaign of mounted images: random options, random work, random faults, one round after the other.

Each round has a seed; what is printed of a fault is what it takes to see it again:

    scripts/torture run --seed S --rounds 1 --steps N
"""

from __future__ import annotations

import argparse
import random
import time

from instance_judge import Fault
from instance_plan import make_plan
from instance_round import play


def main(arguments: list[str]) -> int:
    """The command `scripts/torture run`; 1 when a round found a fault."""
    parser = argparse.ArgumentParser(prog="scripts/torture run", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="of the first round"
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40, help="of each round (default 40)")
    options = parser.parse_args(arguments)
    faults = 0
    for seed in range(options.seed, options.seed + options.rounds):
        said: list[str] = []
        plan, started = make_plan(seed, options.steps), time.monotonic()
        try:
            play(plan, said.append)
        except Fault as fault:
            faults += 1
            print(f"seed {seed}: FAULT: {fault}\n    {plan}\n    last steps: {', '.join(said[-6:])}", flush=True)
        else:
            print(f"seed {seed}: right, {time.monotonic() - started:.1f} s", flush=True)
    print(f"{options.rounds} rounds, {faults} faults")
    return 1 if faults else 0
