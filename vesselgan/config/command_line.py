"""The options of each command, and what `--help` prints."""

import argparse
from collections.abc import Sequence

from vesselgan.config import help, project
from vesselgan.core.errors import UsageError

DEEPSPEED_COMMANDS = {"train_gan", "train_unet"}
RANKED_COMMANDS = DEEPSPEED_COMMANDS | {"segment", "generate"}
"""Commands that a launcher of ranks may start."""
JSON_COMMANDS = {"plan": "table", "status": "text", "doctor": "table"}
"""With --json they print one JSON object instead of this."""
POSITIONAL = {"status": "run"}
"""The setting that an argument without = gives."""


def read(command: str, doc: str | None, argv: list[str] | None) -> argparse.Namespace:
    """The options and, as `overrides`, the settings that were typed; exits 0 after --help. Raises UsageError."""
    parser = argparse.ArgumentParser(
        prog=f"vesselgan {command.replace('_', '-')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", nargs="?", const="", metavar="GROUP", help="all settings, or those of GROUP")
    parser.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")
    if command in DEEPSPEED_COMMANDS:
        parser.add_argument("--deepspeed_config", metavar="JSON", help="a path, or a name in configs/deepspeed")
        parser.add_argument("--run_dir", metavar="DIR", help="absent: created; unfinished: resumed")
        parser.add_argument("--deepspeed", action="store_true", help=argparse.SUPPRESS)
    if command in RANKED_COMMANDS:
        parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    if command in JSON_COMMANDS:
        parser.add_argument("--json", action="store_true", help=f"one JSON object, not a {JSON_COMMANDS[command]}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, as listed below")
    options = parser.parse_intermixed_args(argv)
    if options.help is not None:
        words = [word for word in [options.help, *options.overrides] if "=" in word]
        _print_help(command, doc, parser, options.help if options.help not in words else "", words)
    if command in POSITIONAL:
        words = options.overrides
        if len(runs := [word for word in words if "=" not in word or word.startswith(f"{POSITIONAL[command]}=")]) > 1:
            raise UsageError(f"{command} reads one {POSITIONAL[command]} at a time, not {' and '.join(runs)}")
        options.overrides = [word if "=" in word else project.override(POSITIONAL[command], word) for word in words]
    for word in options.overrides:
        if "=" not in word:
            raise UsageError(f"`{word}` is not key=value (see --help)")
    return options


def _print_help(
    command: str, doc: str | None, parser: argparse.ArgumentParser, group: str, words: Sequence[str]
) -> None:
    """words: settings that were typed beside it; those that a project file makes stand below them."""
    if not group:
        parser.description = help.paragraphs(doc or "")
        print(parser.format_help(), end="")
    below, above = project.settings_of(command, words)
    print(help.settings_help(command, group, [*below, *above]))
    raise SystemExit(0)
