"""All backups of a chain by their facts, also those that are going; and what a prune has to leave alone.

A  <--  B  <--  C  <--  D        the facts of C are damaged: C and D are lost, unless somebody has a copy of them;
                                 B is what that would stand on, so it stays; A may go
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from snapfs.backups.chain import Chain
from snapfs.backups.facts import Facts, read_facts
from snapfs.backups.layout import names_with_facts
from snapfs.errors import BackupDamagedError, SnapfsError


@dataclass(frozen=True)
class Survey:
    """`facts` of all that have them, each before those that stand on it. `damages`: why of others that are listed
    they are no facts, a sentence each. `lost`: those, and what stands on them. `beneath`: what those stand on."""

    facts: dict[str, Facts]
    damages: dict[str, str]
    lost: frozenset[str]
    beneath: frozenset[str]

    @property
    def left_alone(self) -> frozenset[str]:
        return self.lost | self.beneath


def survey(chain: Chain) -> Survey:
    """SnapfsError: the disk refuses."""
    found: dict[str, Facts] = {}
    damages: dict[str, str] = {}
    for entry in chain.entries:
        try:
            found[entry.name] = read_facts(chain.names(entry.name).facts, entry.name)
        except BackupDamagedError as error:
            damages[entry.name] = error.sentence
    for names in names_with_facts(chain.directory):
        if names.name not in found:
            # What is not a backup of ours is somebody else's file.
            with contextlib.suppress(SnapfsError):
                facts = read_facts(names.facts, names.name)
                if facts.chain == chain.id:
                    found[facts.name] = facts
    ordered = _ordered(found)
    beneath = {entry.base for entry in chain.entries if entry.name in damages and entry.base is not None}
    lost = _lost(chain, ordered, damages)
    return Survey(ordered, damages, lost, frozenset(beneath) - lost)


def _ordered(found: dict[str, Facts]) -> dict[str, Facts]:
    ordered: dict[str, Facts] = {}
    for facts in sorted(found.values(), key=lambda one: (one.created_at, one.name)):
        line: list[Facts] = []
        one: Facts | None = facts
        while one is not None and one.name not in ordered and one not in line:
            line.append(one)
            one = found.get(one.base.name) if one.base is not None else None
        ordered.update((one.name, one) for one in reversed(line))
    return ordered


def _lost(chain: Chain, ordered: dict[str, Facts], damages: dict[str, str]) -> frozenset[str]:
    lost = set(damages)
    for facts in ordered.values():
        base = chain.as_it_is(facts).base
        if base is not None and base.name in lost:
            lost.add(facts.name)
    return frozenset(lost)
