"""work/release/ledger.jsonl: what left, one JSON object per line, in order; lines are added and never changed.

It names the subjects that each release was made from, so that one who withdraws can be followed. It stays where the
patients' data stay and is never part of a release.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vesselgan.core.atomic_io import describe, write_text
from vesselgan.core.errors import DataError, ResourceError, reading

LEDGER = "ledger.jsonl"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Account:
    """What one generator's weights have spent."""

    weights_sha256: str
    epsilon: float | None
    """None: no formal guarantee."""
    delta: float | None = None
    unit: str | None = None
    epsilon_patient: float | None = None
    """Per patient at that delta, whatever the unit; None: unknown."""

    def epsilon_per(self, unit: str) -> float | None:
        """None: no formal guarantee per `unit`."""
        return self.epsilon if unit == self.unit else self.epsilon_patient if unit == "patient" else None


@dataclass(frozen=True)
class Entry:
    name: str
    time: str
    """UTC, ISO 8601."""
    accounts: list[Account]
    has_generator: bool
    num_pairs: int
    data_set: str
    """Content hash of the training shards."""
    subjects: dict[str, str]
    """Subject -> patient, of the training set."""
    verdict: str
    reason: str | None
    """Why it left without the verdict `pass`."""
    request: dict[str, Any]
    """What the release was asked to be, by which a repeated command is recognised."""
    checksums_sha256: str
    """Of the released SHA256SUMS."""

    def shares_a_patient(self, other: "Entry") -> bool:
        return not set(self.subjects.values()).isdisjoint(other.subjects.values())


class Ledger:
    """The ledger of a folder of releases. Its user holds the folder's lock.

    Raises DataError for a damaged line, and ResourceError where a line cannot be made durable.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / LEDGER

    def entries(self) -> list[Entry]:
        return [self._parse(number, line) for number, line in enumerate(self._text().splitlines(), 1)]

    def last(self, name: str) -> Entry | None:
        """The last release of that name."""
        return next((entry for entry in reversed(self.entries()) if entry.name == name), None)

    def append(self, entry: Entry) -> None:
        """Durable on return. The file is replaced by itself and one line more, so no line is ever half written."""
        self.entries()
        line = json.dumps({"format_version": FORMAT_VERSION, **asdict(entry)}, ensure_ascii=False, allow_nan=False)
        try:
            write_text(self.path, self._text() + line + "\n")
        except OSError as error:
            raise ResourceError(f"{self.path}: {describe(error)}, so nothing was released; make room") from error

    def _text(self) -> str:
        with reading(self.path, "restore it: it says what left"):
            return self.path.read_text(encoding="utf-8") if self.path.exists() else ""

    def _parse(self, number: int, line: str) -> Entry:
        try:
            content = json.loads(line)
            if content.pop("format_version") != FORMAT_VERSION:
                raise ValueError("of another format version")
            accounts = [Account(**account) for account in content.pop("accounts")]
            return Entry(accounts=accounts, **content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{self.path}: line {number} is damaged ({error}); restore it from a backup: it says what left"
            ) from error


def spent(accounts: Iterable[Account]) -> list[Account] | None:
    """The sums by basic composition, equal weights counted once, per unit that every account bounds; None if none is.

    What one run spends up to two of its checkpoints is added too, which is above the truth.
    """
    distinct = {account.weights_sha256: account for account in accounts}.values()
    totals, delta = [], sum(account.delta or 0.0 for account in distinct)
    for unit in ("patch", "patient"):
        epsilons = [account.epsilon_per(unit) for account in distinct]
        known = [epsilon for epsilon in epsilons if epsilon is not None]
        if len(known) == len(epsilons):
            totals.append(Account("", sum(known), delta, unit))
    return totals or None


def accounts_of_patients(entries: Sequence[Entry], entry: Entry) -> list[Account]:
    """Of every release that shares a patient with `entry`, itself among them."""
    return [account for one in [*entries, entry] if one.shares_a_patient(entry) for account in one.accounts]
