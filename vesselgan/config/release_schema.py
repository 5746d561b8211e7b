"""Settings of `vesselgan release`."""

import re
from dataclasses import dataclass, field

from vesselgan.config.checks import read_if, rule
from vesselgan.config.data_schema import Data

IN_WORDS = rule(lambda v: bool(v.strip()) and v.isprintable(), "must be words on one line")
TO_RELEASE = read_if(lambda c: c.withdraw is None, "withdraw=null")
IS_NAME = rule(
    lambda v: re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", v) is not None,
    "must be letters, digits, _ and -, at most 64",
)


@dataclass
class Release:
    name: str | None = field(metadata=IS_NAME | TO_RELEASE)
    """What the release is called, and its folder: WORK_DIR/release/NAME; null: synthetic-<hash of what it holds>."""
    audit: str | None = field(metadata=TO_RELEASE)
    """Result of `vesselgan audit` of exactly these patches."""
    run: str | None = field(metadata=TO_RELEASE)
    """Run directory whose generator leaves too; null: the patches alone."""
    synthetic: list[str] = field(metadata=TO_RELEASE)
    """Folders of synthetic shards that leave together; empty: run/synthetic."""
    license: str | None = field(metadata=IN_WORDS | TO_RELEASE)
    """Licence of the release, an SPDX identifier or an address; null: the card says that none is set."""
    reason: str | None = field(metadata=IN_WORDS | TO_RELEASE)
    """Why it may leave although the audit did not pass; stands on the card in bold."""
    results: str = field(metadata=TO_RELEASE)
    """Folder of results; those of these patches, and of U-Nets that learned from them, stand on the card."""
    withdraw: str | None = field(metadata=IN_WORDS)
    """A subject or a patient: list what was made from them and must go; null: release."""
    data: Data
    """The cohort of the generator's training, for whose names everything is searched."""
    work_dir: str
