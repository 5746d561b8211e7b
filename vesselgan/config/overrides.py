"""What may be typed: the names of a command's settings and groups, and the check of overrides."""

import dataclasses
import difflib
import functools
import json
import re
import typing
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from vesselgan.config import schema
from vesselgan.config.checks import unread
from vesselgan.core.errors import UsageError

COMMANDS: dict[str, type] = {
    "train_gan": schema.TrainGan,
    "generate": schema.Generate,
    "train_unet": schema.TrainUnet,
    "segment": schema.Segment,
    "evaluate": schema.Evaluate,
    "audit": schema.Audit,
    "release": schema.Release,
    "report": schema.Report,
    "plan": schema.Plan,
    "demo": schema.Demo,
    "study": schema.Study,
    "check": schema.Check,
    "preprocess": schema.Preprocess,
    "benchmark": schema.Benchmark,
    "build_shards": schema.BuildShards,
    "make_phantom": schema.MakePhantom,
    "status": schema.Status,
    "doctor": schema.Doctor,
}
INTERPOLATION = re.compile(r"\$\{\.*[A-Za-z_][\w.]*\}")
"""The one expression of configs/: another setting. Command lines and run directories hold plain values."""


def config_dir() -> Path:
    """The configurations: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


@functools.cache
def keys_of(kind: type, prefix: str = "") -> dict[str, str]:
    """Dotted key -> name of its type, for every setting below the dataclass `kind`."""
    keys: dict[str, str] = {}
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        group = group_of(hint)
        if group is not None:
            keys |= keys_of(group, f"{prefix}{field.name}.")
        else:
            keys[prefix + field.name] = str(hint.__name__ if isinstance(hint, type) else hint).replace("typing.", "")
    return keys


def group_of(hint: Any) -> type | None:
    """The dataclass that is a setting's type (or null); None for a plain setting."""
    kinds = [kind for kind in (hint, *typing.get_args(hint)) if isinstance(kind, type)]
    return next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)


def groups() -> dict[str, list[str]]:
    """Configuration group -> names to choose from."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml") if not file.stem.startswith("_"))
        for folder in sorted(config_dir().iterdir())
        if folder.is_dir() and any(folder.glob("*.yaml"))
    }


def groups_of(command: str) -> dict[str, list[str]]:
    """Those of `groups` that the command's defaults list offers."""
    defaults = (config_dir() / f"{command}.yaml").read_text().split("defaults:")[1].split("]")[0]
    return {name: choices for name, choices in groups().items() if f"{name}:" in defaults}


def checked_overrides(command: str, overrides: list[str]) -> list[str]:
    """The overrides, texts quoted where Hydra would read them as numbers. Raises UsageError for an unknown key."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    known = keys_of(COMMANDS[command])
    choices = groups_of(command)
    checked = []
    for override in overrides:
        if "${" in override:
            raise UsageError(f"`{override}`: ${{...}} is for configs/ alone; give the value itself")
        try:
            parsed = OverridesParser.create().parse_override(override)
        except HydraException as error:
            key, _, value = override.partition("=")
            quoted = f"'{key}=\"{value}\"'"
            message = f"cannot read `{override}`; a value with = or other signs needs quotes: {quoted}"
            raise UsageError(message) from error
        if parsed.is_sweep_override():
            key, _, value = override.partition("=")
            raise UsageError(f"`{override}`: one value is read; a list is {key}=[{value}], a text '{key}=\"{value}\"'")
        key = parsed.key_or_group
        if key in choices:
            chosen = parsed.value()
            if chosen not in choices[key]:
                near = difflib.get_close_matches(str(chosen), choices[key], 1)
                hint = f"; did you mean {key}={near[0]}?" if near else ""
                raise UsageError(f"{key}={chosen} does not exist; choose from {', '.join(choices[key])}{hint}")
        elif not is_known(key, known):
            if readers := [name for name, kind in COMMANDS.items() if is_known(key, keys_of(kind))]:
                raise UsageError(f"{command} does not read `{key}`, leave it out ({', '.join(readers)} read it)")
            near = difflib.get_close_matches(key, [*known, *choices], 1, cutoff=0.4)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise UsageError(f"{command} has no setting `{key}`{hint} (--help lists them)")
        checked.append(_with_texts_quoted(override, parsed.value(), known.get(key, "")))
    return checked


def is_known(key: str, known: Collection[str]) -> bool:
    """Whether the setting, or the group of settings, `key` is among `known`."""
    return key in known or any(name.startswith(key + ".") for name in known)


def check_read(command: str, config: Any, overrides: Sequence[str]) -> None:
    """Raises UsageError for an override that `config` makes the command pass over: it would change nothing."""
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key == "preset":
            presets = presets_of(command)
            if value.strip("\"'") not in presets:
                others = f", only {', '.join(presets)} do" if presets else ""
                raise UsageError(f"{override}: holds nothing that {command} reads{others}; leave it out")
        elif (condition := unread(config, key)) is not None:
            raise UsageError(f"`{override}` would change nothing: {command} reads {key} with {condition} alone")


def presets_of(command: str) -> list[str]:
    """The presets that hold something the command reads."""
    known = keys_of(COMMANDS[command]).keys() | groups_of(command).keys()
    names = groups_of(command).get("preset", [])
    return [name for name in names if any(is_known(key, known) for key in preset_keys(name))]


def preset_keys(name: str) -> list[str]:
    """The groups that a preset chooses and the settings that it makes; none for a name that there is not."""
    import yaml

    path = config_dir() / "preset" / f"{name}.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    names: list[str] = []
    for entry in values.pop("defaults", []):
        if isinstance(entry, dict):
            names += [group.removeprefix("override /") for group in entry]
        elif entry != "_self_":
            names += preset_keys(entry)
    return [*names, *flat_values(values)]


def flat_values(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value, of nested settings."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flat_values(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _with_texts_quoted(override: str, value: Any, kind: str) -> str:
    """`override` of a setting of type `kind`; a text that `value` holds as a number or a truth value is quoted."""
    key, _, typed = override.partition("=")
    if kind.startswith("str") and isinstance(value, int | float):
        return f"{key}={json.dumps(typed.strip())}"
    if kind.startswith("list[str]") and isinstance(value, list) and any(isinstance(v, int | float) for v in value):
        items = typed.strip()[1:-1].split(",")
        if len(items) != len(value):  # a comma inside quotes
            raise UsageError(f"{override}: quote every item: {key}={json.dumps([str(v) for v in value])}")
        pairs = zip(items, value, strict=True)
        quoted = [json.dumps(item.strip()) if isinstance(v, int | float) else item for item, v in pairs]
        return f"{key}=[{','.join(quoted)}]"
    return override


def check_expressions(value: Any) -> None:
    """Raises UsageError for an expression other than another setting: ${oc.env:...} would read secrets."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            check_expressions(item)
    elif isinstance(value, str) and "${" in INTERPOLATION.sub("", value):
        raise UsageError(f"configs: `{value}` is an expression that settings may not hold; only ${{setting}} is one")


def without_foreign_keys(values: dict[str, Any], kind: type, prefix: str) -> dict[str, Any]:
    """Drops what only other commands use (presets and cohorts serve several); raises UsageError for what none knows."""
    hints = typing.get_type_hints(kind)
    everywhere = _all_names()
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if name in hints:
            group = group_of(hints[name])
            if group is not None and isinstance(value, dict):
                value = without_foreign_keys(value, group, f"{prefix}{name}.")
            if hints[name] in (str, str | None) and isinstance(value, int | float):
                raise UsageError(f"{prefix}{name}={value}: a text that reads as a number; quote it where it is set")
            kept[name] = value
        elif prefix + name not in everywhere:
            raise UsageError(f"configs: no command has a setting `{prefix}{name}`")
    return kept


@functools.cache
def _all_names() -> set[str]:
    """Every setting of every command, and the groups that they lie in."""
    keys = [key.split(".") for kind in COMMANDS.values() for key in keys_of(kind)]
    return {".".join(names[:depth]) for names in keys for depth in range(1, len(names) + 1)}
