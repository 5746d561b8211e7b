"""From a command line to a typed, checked configuration: argparse for options, Hydra's compose for overrides.

`@hydra.main` cannot live under the `deepspeed` launcher, which passes --local_rank and --deepspeed_config of its own.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vesselgan.config.checks import check, unread
from vesselgan.config.overrides import (
    COMMANDS,
    check_expressions,
    check_read,
    checked_overrides,
    config_dir,
    flat_values,
    groups_of,
    is_known,
    keys_of,
    without_foreign_keys,
)
from vesselgan.core.errors import UsageError

FREE_TO_CHANGE = (
    "work_dir",
    "run_dir",
    "checkpoint",
    "allow_config_change",
    "runtime",
    "data.cohort_dir",
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
"""Settings, or groups of them, that change nothing a run computes: where it and its data lie (whose content is
compared), how it is resumed, what is logged and kept. Its name does not depend on them, and they may differ when it
resumes."""


@dataclass(frozen=True)
class Command:
    """A parsed command line."""

    config: Any
    deepspeed_config: str | None
    """A path, or a name in configs/deepspeed; None: ds_<precision>.json."""
    wants_json: bool
    overrides: tuple[str, ...]
    """As they were typed; --run_dir as the setting that it is."""


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
    below, above = project.settings_of(command, [*overrides, *own])
    config = compose(command, above, below=below)
    if suggested := defaults(config, [*below, *above]):
        config = compose(command, above, below=[*suggested, *below])
    if options.print_config:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return Command(
        config=config,
        deepspeed_config=getattr(options, "deepspeed_config", None),
        wants_json=getattr(options, "json", False),
        overrides=(*overrides, *own),
    )


def compose(command: str, overrides: list[str], *, below: Sequence[str] = ()) -> Any:
    """The configuration of `command` (a dataclass of config.schema) from configs/<command>.yaml and overrides.

    below: overrides that stand under the others and that nobody typed. Raises UsageError for a mistake, and for an
    override that the command does not read.
    """
    config = _composed(command, [*below, *overrides])
    check(config)
    check_read(command, config, overrides)
    return config


@functools.cache
def readable(command: str, overrides: tuple[str, ...], own: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `overrides`, typed for a command that starts `command`, that it reads beside its own settings `own`."""
    known = keys_of(COMMANDS[command]).keys() | groups_of(command).keys()
    kept = [override for override in overrides if is_known(override.split("=")[0], known)]
    config = _composed(command, [*own, *kept]) if kept else None
    return tuple(override for override in kept if unread(config, override.split("=")[0]) is None)


def _composed(command: str, overrides: list[str]) -> Any:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    overrides = checked_overrides(command, overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(config_dir()), version_base="1.3"):
            composed = hydra_compose(config_name=command, overrides=overrides)
        values: Any = OmegaConf.to_container(composed, resolve=False)
        check_expressions(values)
        known = without_foreign_keys(values, COMMANDS[command], "")
        config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(COMMANDS[command]), known))
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(_plain_message(error)) from error
    return config


def from_yaml(command: str, path: Path) -> Any:
    """The configuration that a run directory holds. Raises UsageError if it is not one of `command`."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        values = plain_yaml(path.read_text())
        if not isinstance(values, dict):
            raise yaml.YAMLError("it holds no settings")
        config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(COMMANDS[command]), values))
        check(config)
    except OSError as error:
        raise UsageError(f"{path}: no configuration there ({error.strerror}); is this a run of {command}?") from error
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError) as error:
        raise UsageError(f"{path}: not a configuration of {command}: {_plain_message(error)}") from error
    return config


def plain_yaml(text: str) -> Any:
    """The values of a file of settings, as JSON knows them. Raises YAMLError for what expands, an expression or an
    alias, and for others, such as a date."""
    import yaml

    if "${" in text or any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
        raise yaml.YAMLError("an expression or an alias; a run's settings are plain values")
    try:
        return json.loads(json.dumps(yaml.safe_load(text)))
    except TypeError as error:
        raise yaml.YAMLError(f"a value that is none of a setting, quote a text: {error}") from error


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
    return flat_values(dataclasses.asdict(config), prefix)


def is_free_to_change(key: str) -> bool:
    """Whether a run may resume with another value of this setting and be the same run."""
    return any(key == free or key.startswith(f"{free}.") for free in FREE_TO_CHANGE)


def _plain_message(error: Exception) -> str:
    key = getattr(error, "full_key", None)
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "Missing mandatory value" in first or "MissingMandatoryValue" in type(error).__name__:
        return f"{key or first} has no default; give it, for example {key or 'key'}=VALUE"
    if match := re.fullmatch(r"Could not override '((\w+)[\w.]*)\.\w+'\.", first):
        return f"{first} {match[1]} is null: choose a {match[2]}=NAME that has it (--help {match[2]})"
    return f"{key}: {first}" if key and key not in first else first
