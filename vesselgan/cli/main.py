"""`vesselgan COMMAND ...`: finds the command, reads its settings and calls it."""

import difflib
import inspect
import os
import sys
from collections.abc import Mapping
from typing import Any

from vesselgan.cli.commands import PREPARATION, STAGES
from vesselgan.config import help
from vesselgan.config.compose import parse
from vesselgan.config.project import groups_chosen
from vesselgan.core.console import log
from vesselgan.core.errors import UsageError, exit_on_error
from vesselgan.core.version import __version__

COHORT_KEYS = ("data.name=", "data.cohort_dir=")
COMMANDS = {name.replace("_", "-"): name for name in (*PREPARATION, *STAGES)}
"""As it is typed -> its name."""


def main() -> None:
    """Entry of `vesselgan` and `python -m vesselgan`, whose first argument is the command."""
    # The deepspeed launcher puts its own option first.
    launcher = [word for word in sys.argv[1:2] if word.startswith(("--local_rank", "--local-rank"))]
    words = sys.argv[1 + len(launcher) :]
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
    elif words[0] == "--version":
        print(__version__)
    elif words[0] not in COMMANDS:
        exit_on_error(lambda: _refuse(words[0]))
    else:
        sys.argv = [f"vesselgan {words[0]}", *launcher, *words[1:]]
        run(COMMANDS[words[0]])


def run(name: str) -> None:
    """Run the command `name` with the arguments of this process, and end it with the exit code of what happens."""
    if name in PREPARATION:
        PREPARATION[name]()
    else:
        exit_on_error(lambda: _run(name))


def _run(name: str) -> None:
    lines: list[str] = []

    def of_what_is_named(config: Any, overrides: list[str]) -> list[str]:
        """The cohort of the run, set, predictions or results that the command names, where none is typed."""
        from vesselgan.formats.recorded_cohort import recorded_cohort

        is_chosen = "data" in groups_chosen(overrides) or any(word.startswith(COHORT_KEYS) for word in overrides)
        recorded = None if is_chosen or not hasattr(config, "data") else recorded_cohort(config)
        if recorded is None or recorded.is_of(config.data):
            return []
        lines.append(f"cohort {recorded.data['name']} ({recorded.data['cohort_dir']}), as {recorded.source} records it")
        return recorded.overrides()

    command = parse(name, STAGES[name].__doc__, defaults=of_what_is_named)
    if is_first_rank(os.environ):
        for line in lines:
            log.info(line)
    STAGES[name](command)


def overview() -> str:
    """Every command with its first sentence."""
    lines = ["usage: vesselgan COMMAND [key=value ...]", "", "vesselgan COMMAND --help explains its settings.", ""]
    for name, command in COMMANDS.items():
        doc = inspect.getdoc((PREPARATION | STAGES)[command]) or ""
        lines += help.wrapped(name, doc.split("\n\n")[0].replace("\n", " "))
    return "\n".join(lines)


def is_first_rank(environment: Mapping[str, str]) -> bool:
    """Before the ranks have met: by the variables of their launchers."""
    return all(environment.get(name, "0") == "0" for name in ("RANK", "SLURM_PROCID"))


def _refuse(word: str) -> None:
    near = difflib.get_close_matches(word.replace("_", "-"), COMMANDS, 1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    raise UsageError(f"`{word}` is no command{hint} (`vesselgan` lists them)")
