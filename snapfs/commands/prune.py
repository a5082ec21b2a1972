"""`snapfs prune`: of a directory of backups those go that no rule keeps.

The newest stays by every rule, and has to be whole: one that was not verified yet is read first. Whatever is merged
is read before anything changes, too (see `backups.pruning`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from snapfs.backups.chain import Chain
from snapfs.backups.left import settle
from snapfs.backups.proving import prove
from snapfs.backups.pruning import Pruner
from snapfs.backups.survey import Survey, survey
from snapfs.backups.turn import turn
from snapfs.destination.consent import Note
from snapfs.errors import BackupDamagedError, UsageError
from snapfs.imager.pace import yield_to_others
from snapfs.imager.progress import Report
from snapfs.retention import Keep, kept
from snapfs.stamps import local_time
from snapfs.system.mounts import canonical_path


@dataclass(frozen=True, slots=True)
class BackupFate:
    """What becomes of a backup: `reasons` say why it stays; one that has none goes."""

    name: str
    taken_at: str
    reasons: tuple[str, ...]

    @property
    def stays(self) -> bool:
        return bool(self.reasons)


def prune(path: Path, keep: Keep, report: Report, note: Note, *, dry_run: bool) -> list[BackupFate]:
    """Let go of what `keep` does not keep, unless it is a `dry_run`; what becomes of each, oldest first.

    BackupDamagedError: one that stays, or is needed for it, is damaged, and all are left. One whose facts are, is
    left with what stands on it, and said: the newest must not be among these.
    """
    if not path.is_dir():
        raise UsageError(f"{path} is no directory; name a directory of backups.")
    directory = canonical_path(path)
    with turn(directory, changes=not dry_run):
        if not dry_run:
            settle(directory)
        chain = Chain.load(directory)
        for sentence in chain.notes:
            note(sentence)
        if chain.last is None:
            raise UsageError(f"There is no backup in {directory}; name a directory of backups.")
        found = survey(chain)
        fates = _fates(chain, keep, found)
        if not dry_run:
            yield_to_others()
            _check_newest(chain, found, report)
        for name, sentence in found.damages.items():
            note(_left_sentence(chain, found, name, sentence))
        if not dry_run:
            Pruner(chain, report).prune({fate.name for fate in fates if not fate.stays})
    return fates


def _fates(chain: Chain, keep: Keep, found: Survey) -> list[BackupFate]:
    """What is lost stays, and counts for no rule."""
    good = [entry for entry in chain.entries if entry.name not in found.lost]
    reasons = kept([(local_time(entry.taken_at), entry.name) for entry in good], keep)
    reasons |= dict.fromkeys(found.lost, ("lost",))
    for name in found.beneath:
        reasons.setdefault(name, ("a lost one stands on it",))
    return [BackupFate(entry.name, entry.taken_at, reasons.get(entry.name, ())) for entry in chain.entries]


def _left_sentence(chain: Chain, found: Survey, name: str, sentence: str) -> str:
    """Without its way out, which would not help."""
    others = sorted(found.lost - {name})
    what = f"{name} and what else is lost ({', '.join(others)}) stay" if others else f"{name} stays"
    return (
        f"{sentence.partition('; ')[0].rstrip('.')}; {what}, in case there is another copy of "
        f"{chain.names(name).facts.name}."
    )


def _check_newest(chain: Chain, found: Survey, report: Report) -> None:
    """It is what is left when all else is lost."""
    newest = chain.entries[-1]
    if newest.verified_at is not None and newest.name not in found.lost:
        return
    proof = prove(chain, [newest.name], report)
    if proof.damages:
        what = proof.damages[0].partition("; ")[0].rstrip(".")
        raise BackupDamagedError(
            f"{what}, so the newest backup is not whole, and the others are left; back up again, then prune.",
            path=chain.directory,
        )
    chain.note_verified([newest.name])
