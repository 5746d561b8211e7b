"""What messages and help tell to type is there with a checkout and without: `vesselgan COMMAND`."""

import ast
import re
from pathlib import Path

from vesselgan.cli.main import COMMANDS

CHECKOUT = re.compile(r"launch/\w+\.py|(?<!-m mpi4py )-m data_prep\.")
NAMED = re.compile(r"`vesselgan ([a-z][\w-]*)")

LEFT = "vesselgan/cli/"
"""The entry points, which name themselves."""


def texts(repository: Path) -> list[tuple[str, str]]:
    """(place, text) of every string of the packages, docstrings too, and of the pages' templates."""
    found = []
    for package in ("vesselgan", "data_prep"):
        for path in sorted((repository / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            strings = [
                node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
            ]
            found += [(f"{path.relative_to(repository)}:{node.lineno}", node.value) for node in strings]
        for path in sorted((repository / package).rglob("templates/*")):
            found.append((str(path.relative_to(repository)), path.read_text(encoding="utf-8")))
    return found


def test_no_hint_needs_a_checkout(repository):
    places = [place for place, text in texts(repository) if CHECKOUT.search(text) and not place.startswith(LEFT)]
    assert not places, places


def test_every_command_a_hint_names_exists(repository):
    named = {(place, name) for place, text in texts(repository) for name in NAMED.findall(text)}
    assert len(named) > 10
    assert not [(place, name) for place, name in named if name not in COMMANDS]
