"""From a command line to a typed, checked configuration: argparse for options, Hydra's compose for overrides.

`@hydra.main` cannot live under the `deepspeed` launcher, which passes --local_rank and --deepspeed_config of its own.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vesselgan.config import checks, schema
from vesselgan.core.errors import UsageError

COMMANDS: dict[str, type] = {
    "train_gan": schema.TrainGan,
    "generate": schema.Generate,
    "train_unet": schema.TrainUnet,
    "segment": schema.Segment,
    "evaluate": schema.Evaluate,
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
FREE_TO_CHANGE = (
    "work_dir",
    "run_dir",
    "checkpoint",
    "allow_config_change",
    "runtime",
    "data.cache_gib",
    "data.local_copy_dir",
    "train.max_minutes",
    "train.log_every",
    "train.image_every",
    "train.checkpoint_every",
    "train.keep_last",
    "train.save_every_epochs",
    "train.num_workers",
    "unet.num_workers",
    "unet.log_every",
    "unet.keep_last",
    "unet.max_skipped_steps",
)
"""Settings, or groups of them, that change nothing a run computes: where it lies, how it is resumed, what is logged and
kept. Its name does not depend on them, and they may differ when it resumes."""


INTERPOLATION = re.compile(r"\$\{\.*[A-Za-z_][\w.]*\}")
"""The one expression of configs/: another setting. Command lines and run directories hold plain values."""


@dataclass(frozen=True)
class Command:
    """A parsed command line."""

    config: Any
    deepspeed_config: str | None
    """A path, or a name in configs/deepspeed; None: ds_<precision>.json."""
    wants_json: bool
    overrides: tuple[str, ...]
    """As they were typed."""


def config_dir() -> Path:
    """The configurations: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def parse(
    command: str,
    doc: str | None,
    argv: list[str] | None = None,
    *,
    defaults: Callable[[Any, list[str]], list[str]] = lambda config, overrides: [],
) -> Command:
    """Reads the command line of `command`; exits 0 after --help and --print_config. Raises UsageError for a mistake.

    defaults: overrides that a configuration and its overrides suggest, below these.
    """
    from vesselgan.config import command_line, project

    options = command_line.read(command, doc, argv)
    overrides: list[str] = options.overrides
    run_dir = getattr(options, "run_dir", None)
    own = [] if run_dir is None else [project.override("run_dir", run_dir)]
    above = project.with_project(command, [*overrides, *own])
    config = compose(command, above)
    if below := defaults(config, above):
        config = compose(command, [*below, *above])
    if options.print_config:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return Command(
        config=config,
        deepspeed_config=getattr(options, "deepspeed_config", None),
        wants_json=getattr(options, "json", False),
        overrides=tuple(overrides),
    )


def compose(command: str, overrides: list[str]) -> Any:
    """The configuration of `command` (a dataclass of config.schema) from configs/<command>.yaml and overrides."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    overrides = _checked(command, overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(config_dir()), version_base="1.3"):
            composed = hydra_compose(config_name=command, overrides=overrides)
        values: Any = OmegaConf.to_container(composed, resolve=False)
        _check_expressions(values)
        known = _without_foreign_keys(values, COMMANDS[command], "")
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(COMMANDS[command]), known))
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(_plain_message(error)) from error
    checks.check(config)
    return config


def from_yaml(command: str, path: Path) -> Any:
    """The configuration that a run directory holds. Raises UsageError if it is not one of `command`."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        values = plain_yaml(path.read_text())
        config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(COMMANDS[command]), values))
        checks.check(config)
    except OSError as error:
        raise UsageError(f"{path}: no configuration there ({error.strerror}); is this a run of {command}?") from error
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UsageError(f"{path}: not a configuration of {command}: {_plain_message(error)}") from error
    return config


def plain_yaml(text: str) -> Any:
    """The values of a run's settings. Raises YAMLError for what expands: an expression or an alias."""
    import yaml

    if "${" in text or any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
        raise yaml.YAMLError("an expression or an alias; a run's settings are plain values")
    return yaml.safe_load(text)


def to_yaml(config: Any) -> str:
    """`config` as YAML, keys in the schema's order."""
    import yaml

    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


def config_hash(config: Any) -> str:
    """Eight hexadecimal digits that change with every setting that can change a result."""
    values = {key: value for key, value in flat(config).items() if not is_free_to_change(key)}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value, for every setting below the dataclass `config`."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        key = prefix + field.name
        values |= flat(value, f"{key}.") if dataclasses.is_dataclass(value) else {key: value}
    return values


def is_free_to_change(key: str) -> bool:
    """Whether a run may resume with another value of this setting and be the same run."""
    return any(key == free or key.startswith(f"{free}.") for free in FREE_TO_CHANGE)


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


def _checked(command: str, overrides: list[str]) -> list[str]:
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
        key = parsed.key_or_group
        if key in choices:
            chosen = parsed.value()
            if chosen not in choices[key]:
                near = difflib.get_close_matches(str(chosen), choices[key], 1)
                hint = f"; did you mean {key}={near[0]}?" if near else ""
                raise UsageError(f"{key}={chosen} does not exist; choose from {', '.join(choices[key])}{hint}")
        elif key not in known and not any(name.startswith(key + ".") for name in known):
            near = difflib.get_close_matches(key, [*known, *choices], 1, cutoff=0.4)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise UsageError(f"{command} has no setting `{key}`{hint} (--help lists them)")
        checked.append(_with_texts_quoted(override, parsed.value(), known.get(key, "")))
    return checked


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


def _check_expressions(value: Any) -> None:
    """Raises UsageError for an expression other than another setting: ${oc.env:...} would read secrets."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_expressions(item)
    elif isinstance(value, str) and "${" in INTERPOLATION.sub("", value):
        raise UsageError(f"configs: `{value}` is an expression that settings may not hold; only ${{setting}} is one")


def _without_foreign_keys(values: dict[str, Any], kind: type, prefix: str) -> dict[str, Any]:
    """Drops what only other commands use (presets and cohorts serve several); raises UsageError for what none knows."""
    hints = typing.get_type_hints(kind)
    everywhere = _all_names()
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if name in hints:
            group = group_of(hints[name])
            if group is not None and isinstance(value, dict):
                value = _without_foreign_keys(value, group, f"{prefix}{name}.")
            if hints[name] in (str, str | None) and isinstance(value, int | float):
                raise UsageError(f"{prefix}{name}={value}: a text that reads as a number; quote it where it is set")
            kept[name] = value
        elif prefix + name not in everywhere:
            raise UsageError(f"configs: no command has a setting `{prefix}{name}`")
    return kept


@functools.cache
def _all_names() -> set[str]:
    """Every setting of every command, and the groups that they lie in."""
    return {name for kind in COMMANDS.values() for key in keys_of(kind) for name in _prefixes(key)}


def _prefixes(key: str) -> list[str]:
    names = key.split(".")
    return [".".join(names[: n + 1]) for n in range(len(names))]


def _plain_message(error: Exception) -> str:
    key = getattr(error, "full_key", None)
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "Missing mandatory value" in first or "MissingMandatoryValue" in type(error).__name__:
        return f"{key or first} has no default; give it, for example {key or 'key'}=VALUE"
    return f"{key}: {first}" if key and key not in first else first
