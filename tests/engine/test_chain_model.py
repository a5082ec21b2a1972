"""A chain of snapshots against a list of byte arrays, whatever is done to it in whatever order."""

from __future__ import annotations

import pytest
from chain_machine import MACHINES
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test


@pytest.mark.parametrize("machine", MACHINES)
def test_every_snapshot_is_right_whatever_is_done(machine: type[RuleBasedStateMachine]) -> None:
    quick = settings(
        max_examples=12,
        stateful_step_count=50,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=quick)
