"""The campaign of the model: the engine against byte arrays, one for each time, with a fresh seed each round.

The tests run the same machines with the same steps every time; here each round takes others, and after each step the
rules of the store's maps are looked at. What a fault takes to be seen again is printed:

    scripts/torture model --seed S --rounds 1 --only MACHINE
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterable

from chain_machine import MACHINES as CHAIN_MACHINES
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from test_model import MACHINES as ENGINE_MACHINES

Machine = type[RuleBasedStateMachine]
MACHINES: list[Machine] = [*ENGINE_MACHINES, *CHAIN_MACHINES]


def play(machine: Machine, number: int, examples: int, steps: int) -> None:
    """One round of one machine; raises what it finds, after the shortest way there was printed."""
    # The seed is noted in the class.
    seeded = seed(number)(type(machine.__name__, (machine,), {}))
    run_state_machine_as_test(
        seeded,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def run_campaign(
    seeds: Iterable[int], machines: Iterable[Machine], examples: int, steps: int, say: Callable[[str], None]
) -> int:
    """How many rounds found a fault."""
    faults = 0
    machines = list(machines)
    for number in seeds:
        started = time.monotonic()
        found = 0
        for machine in machines:
            try:
                play(machine, number, examples, steps)
            except Exception as fault:
                found += 1
                again = f"scripts/torture model --seed {number} --rounds 1 --only {machine.__name__}"
                say(f"seed {number}: FAULT in {machine.__name__}: {type(fault).__name__}: {fault}\n    {again}")
        if not found:
            say(f"seed {number}: right, {time.monotonic() - started:.1f} s")
        faults += found
    return faults


def main(arguments: list[str]) -> int:
    """The command `scripts/torture model`; 1 when a round found a fault."""
    names = {machine.__name__: machine for machine in MACHINES}
    parser = argparse.ArgumentParser(prog="scripts/torture model", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="of the first round"
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--examples", type=int, default=30, help="of each machine in a round (default 30)")
    parser.add_argument("--steps", type=int, default=60, help="of each example (default 60)")
    parser.add_argument("--only", choices=names, help="one machine")
    options = parser.parse_args(arguments)
    machines = [names[options.only]] if options.only else MACHINES
    seeds = range(options.seed, options.seed + options.rounds)
    faults = run_campaign(seeds, machines, options.examples, options.steps, lambda line: print(line, flush=True))
    print(f"{options.rounds} rounds, {faults} faults")
    return 1 if faults else 0
