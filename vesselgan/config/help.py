"""What `--help` prints of a command's settings: default, choices and the sentence that stands below the field."""

import ast
import dataclasses
import functools
import inspect
import itertools
import json
import re
import shutil
import textwrap
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vesselgan.config import overrides
from vesselgan.core.errors import UsageError

NO_DEFAULT = "???"
INTERPOLATION = re.compile(r"\$\{\.*([\w.]+)\}")
EVERYWHERE = {
    "work_dir": "Folder below which cohorts, runs, results and reports lie unless they are named.",
    "seed": "The same seed gives the same result.",
    "checkpoint": "Name of the checkpoint; null: the newest complete one, of a finished U-Net the best.",
    "patch_shape": "Voxels of a patch along X, Y, Z.",
    "batch_size": "Patches that are computed at a time.",
    "learning_rate": "Adam's.",
    "learning_rate_critic": "Adam's, for the critic.",
    "learning_rate_generator": "Adam's, for the generator.",
    "log_every": "Steps between logged means.",
    "num_workers": "Processes that read shards; 0: the training process itself.",
    "update_mparameters_per_s_shared": "The same of each rank while ranks_per_node are at work on one batch.",
}
"""What means the same wherever it stands."""
COMMAND = re.compile("(vesselgan|deepspeed|srun|python|mpiexec) ")
MIN_WIDTH = 40
PLAIN_TYPES = {"list[str]": "list of texts", "list[int]": "list of whole numbers", "list[float]": "list of numbers"}
PLAIN_TYPES |= {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", " | None": " or null"}


def settings_help(command: str, group: str = "", words: Sequence[str] = ()) -> str:
    """The settings of `command`, by group, as `words` make them; those of one group alone if it is named.

    Raises UsageError for a group that there is not.
    """
    sections = _sections(overrides.COMMANDS[command], "")
    if group and group not in sections:
        groups = ", ".join(name for name in sections if name)
        raise UsageError(f"{command} has no group `{group}` of settings; --help GROUP takes one of {groups}")
    defaults = defaults_of(command, words)
    offered = overrides.groups_of(command)
    if presets := overrides.presets_of(command):
        offered["preset"] = presets
    lines = []
    for name, (kind, fields) in sections.items():
        if not group or name == group or name.startswith(f"{group}."):
            lines += ["", *_heading(name, kind, offered.get(name, []))]
            lines += [line for field in fields for line in _setting(name, kind, field, defaults)]
    if not group:
        for name in offered.keys() - sections.keys():
            lines += ["", f"{name}=NAME makes several settings at once:"]
            lines += [line for choice in offered[name] for line in wrapped(f"{name}={choice}", _comment(name, choice))]
    return "\n".join(lines)


def wrapped(head: str, text: str) -> list[str]:
    """`head`, and below it, further indented, `text`, both at the terminal's width."""
    below = _wrap(text, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return [*_wrap(head, initial_indent="  ", subsequent_indent=" " * 6), *below]


def _wrap(text: str, *, initial_indent: str = "", subsequent_indent: str = "") -> list[str]:
    """Lines of the terminal's width; a command's name such as build-shards is not broken."""
    return textwrap.wrap(
        text, width(), initial_indent=initial_indent, subsequent_indent=subsequent_indent, break_on_hyphens=False
    )


def width() -> int:
    """Of the terminal, as COLUMNS or the terminal itself says."""
    return max(MIN_WIDTH, shutil.get_terminal_size((100, 24)).columns)


def paragraphs(text: str) -> str:
    """`text` at the terminal's width; commands stay as they are, to be copied."""
    blocks = [textwrap.dedent(block) for block in inspect.cleandoc(text).split("\n\n")]
    shown = [textwrap.indent(b, " " * 4) if COMMAND.match(b) else "\n".join(_wrap(b)) for b in blocks]
    return "\n\n".join(shown)


def defaults_of(command: str, words: Sequence[str] = ()) -> dict[str, Any]:
    """Dotted key -> value, read from configs/ without Hydra, then from `words`; expressions as they stand there."""
    import yaml

    values = _read(overrides.config_dir() / f"{command}.yaml")
    chosen = dict(word.split("=", 1) for word in words)
    for group in sorted(chosen.keys() & overrides.groups().keys(), key=lambda group: group == "preset"):
        path = overrides.config_dir() / group / f"{chosen.pop(group)}.yaml"
        if path.is_file():
            content = _read(path)
            _merge(values, content if group == "preset" else {group: content})
    known = overrides.flat_values(values)
    return known | {key: yaml.safe_load(text) for key, text in chosen.items() if key in known}


def _read(path: Path) -> dict[str, Any]:
    """A file of configs/ with what its defaults list names, the later over the earlier."""
    import yaml

    content = yaml.safe_load(path.read_text()) or {}
    values: dict[str, Any] = {}
    for entry in content.pop("defaults", ["_self_"]):
        if entry == "_self_":
            _merge(values, content)
        elif isinstance(entry, str):
            _merge(values, _read(path.parent / f"{entry}.yaml"))
        else:
            for group, name in entry.items():
                if name is not None:
                    group = group.removeprefix("override /")
                    _merge(values, {group: _read(overrides.config_dir() / group / f"{name}.yaml")})
    return values


def _comment(group: str, name: str) -> str:
    """What a file of configs/ says of itself: the comment that it begins with."""
    lines = (overrides.config_dir() / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.removeprefix("# ") for line in comment if "@package" not in line)


def _merge(values: dict[str, Any], others: dict[str, Any]) -> None:
    for key, other in others.items():
        if isinstance(values.get(key), dict) and isinstance(other, dict):
            _merge(values[key], other)
        else:
            values[key] = other


def _sections(kind: type, name: str) -> dict[str, tuple[type, list[dataclasses.Field[Any]]]]:
    """Group -> (its dataclass, its settings), the command's own settings under the empty name."""
    hints = typing.get_type_hints(kind)
    plain: list[dataclasses.Field[Any]] = []
    deeper: dict[str, tuple[type, list[dataclasses.Field[Any]]]] = {}
    for field in dataclasses.fields(kind):
        group = overrides.group_of(hints[field.name])
        if group is None:
            plain.append(field)
        else:
            deeper |= _sections(group, f"{name}.{field.name}" if name else field.name)
    return {name: (kind, plain), **deeper}


def _heading(name: str, kind: type, choices: list[str]) -> list[str]:
    if not name:
        return _wrap("settings, key=value (and project=FILE: those of a file, below what is typed):")
    lines = _wrap(f"{name}: {_sentences(kind)}".rstrip(": "))
    if choices:
        lines += _wrap(f"{name}=NAME chooses one of {', '.join(choices)}")
    return lines


def _sentences(kind: type) -> str:
    """The docstring of a dataclass, or of the one that it extends; not the signature that dataclasses invent."""
    docs = (base.__doc__ or "" for base in kind.__mro__ if dataclasses.is_dataclass(base))
    return next((" ".join(doc.split()) for doc in docs if "(" not in doc.split(" ")[0]), "")


def _setting(group: str, kind: type, field: dataclasses.Field[Any], defaults: dict[str, Any]) -> list[str]:
    key = f"{group}.{field.name}" if group else field.name
    default = "" if key not in defaults else "=" + _text(defaults[key])
    allowed = [_type_name(typing.get_type_hints(kind)[field.name])]
    if "rule" in field.metadata:
        message = field.metadata["rule"][1].removeprefix("must ").removeprefix("be ").removeprefix("lie ")
        allowed = [message] if message.startswith("one of") else [*allowed, message]
    docs = field_docs(kind)
    return wrapped(f"{key}{default}  ({', '.join(allowed)})", docs.get(field.name) or EVERYWHERE.get(field.name, ""))


def _text(value: Any) -> str:
    if value == NO_DEFAULT:
        return "... to be given"
    return INTERPOLATION.sub(r"<\1>", value) if isinstance(value, str) else json.dumps(value)


def _type_name(hint: Any) -> str:
    name = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    for python, plain in PLAIN_TYPES.items():
        name = name.replace(python, plain)
    return name


@functools.cache
def field_docs(kind: type) -> dict[str, str]:
    """Field -> the sentence below it in the class of the schema that declares it."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = _class_bodies(inspect.getsourcefile(base) or "")[base.__name__]
        for statement, following in zip(body, [*body[1:], None], strict=True):
            if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
                continue
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


@functools.cache
def _class_bodies(file: str) -> dict[str, list[ast.stmt]]:
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}
