"""A project file: what the commands of one study share, so that nobody types it again.

    data: pairs                     # a layout of configs/data, or the path of a layout file of your own
    data.name: mine
    data.root: /data/my_cohort
    data.prepare.split: {validation: 5, test: 5}
    work_dir: /scratch/mine

`project=FILE` names it, or the variable VESSELGAN_PROJECT. Its settings stand above configs/ and below what is typed, a
typed preset's included; a command takes those that it has. Paths are those of the command line: relative to the working
directory.
"""

import hashlib
import json
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from vesselgan.config import compose, overrides
from vesselgan.core.errors import UsageError, check_readable

VARIABLE = "VESSELGAN_PROJECT"
KEY = "project="
ENDINGS = (".yaml", ".yml")
BASE_LAYOUT = "pairs"
"""What a layout file of your own extends unless its defaults list names another."""


def settings_of(command: str, typed: Sequence[str]) -> tuple[list[str], list[str]]:
    """(overrides of the project file and of a layout file, if any; those that are `typed` beside them, above).

    Raises UsageError for a file that cannot be read, and for keys that no command has.
    """
    path = _named_in(typed)
    own = [word for word in typed if not word.startswith(KEY)]
    settings = {} if path is None else _checked(path, overrides.flat_values(_load(path)))
    chosen, of_preset = groups_chosen(own), set(overrides.preset_keys(_preset_in(own)))
    groups = overrides.groups_of(command)
    known = overrides.keys_of(overrides.COMMANDS[command])
    kept = [
        override(key, value)
        for key, value in settings.items()
        if (key in known or key in groups) and key.split(".")[0] not in chosen and key not in of_preset
    ]
    layouts = [word for word in own if _is_layout_file(word)]
    below = [word for setting in [*kept, *layouts] for word in _with_layout(setting, known)]
    return below, [word for word in own if word not in layouts]


def _is_layout_file(setting: str) -> bool:
    key, _, name = setting.partition("=")
    return key == "data" and name.strip("\"'").endswith(ENDINGS)


def groups_chosen(words_typed: Sequence[str]) -> set[str]:
    """Groups that these overrides choose, as `data=pairs`, or a preset of theirs; the settings below go by that."""
    words = {word.partition("=")[0] for word in words_typed if "=" in word}
    return (words | {*overrides.preset_keys(_preset_in(words_typed))}) & overrides.groups().keys()


def _preset_in(words: Sequence[str]) -> str:
    return next((word.partition("=")[2] for word in reversed(words) if word.startswith("preset=")), "")


def record() -> dict[str, str] | None:
    """File name and SHA-256 of this process's project file, for the provenance; None without one."""
    path = _named_in(sys.argv[1:])
    return None if path is None else {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _named_in(words: Sequence[str]) -> Path | None:
    named = [word.removeprefix(KEY) for word in words if word.startswith(KEY)]
    name = named[-1] if named else os.environ.get(VARIABLE)
    return Path(name) if name else None


def _checked(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` of `path`. Raises UsageError, naming every key that no command has."""
    known = {key for kind in overrides.COMMANDS.values() for key in overrides.keys_of(kind)} | overrides.groups().keys()
    if unknown := [key for key in settings if key not in known]:
        raise UsageError(
            f"{path}: no command has the settings {', '.join(unknown)} (vesselgan COMMAND --help lists them)"
        )
    return settings


def _with_layout(setting: str, known: Collection[str]) -> list[str]:
    """`setting`, or what `data=FILE.yaml` stands for: a layout of configs/data and the file's settings above it."""
    if not _is_layout_file(setting):
        return [setting]
    path = Path(setting.partition("=")[2].strip("\"'"))
    content = _load(path)
    defaults = content.pop("defaults", [])
    names = defaults if isinstance(defaults, list) else [defaults]
    bases = [name for name in names if name not in ("_self_", "_common")] or [BASE_LAYOUT]
    if len(bases) > 1 or not isinstance(bases[0], str):
        raise UsageError(f"{path}: defaults: {defaults}: must name one layout of configs/data, such as {BASE_LAYOUT}")
    settings = _checked(path, overrides.flat_values({"name": path.stem, **content}, "data."))
    return [f"data={bases[0]}", *(override(key, value) for key, value in settings.items() if key in known)]


def override(key: str, value: Any) -> str:
    """As it would be typed."""
    if key in overrides.groups():
        return f"{key}={value}"
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def _load(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = compose.plain_yaml(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        check_readable(path, error)
        raise UsageError(f"{path}: cannot be read as settings ({error})") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: must hold settings, key: value")
    return content
