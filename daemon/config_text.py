"""The configuration as text for people: the file that `driftd init` writes, and the reference.

Both are generated from the models' fields, so that a default and its reason are written once. In
the file, what must be decided is active and everything else stands as a comment at its default.
``python -m daemon.config_text`` prints the reference of ``docs/configuration.md``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from daemon.config import Config
from daemon.config_reading import models_of

WIDTH = 96
Task = Literal["text", "tabular"]
Kind = Literal["kafka", "file", "stdin"]
Active = Mapping[tuple[str, ...], Any]

_FOLDERS = (("registry", "path"), ("checkpoint", "path"))  # active, as they must be kept safe

HEADER = """\
driftd's configuration. Lines that start with "# key:" show a default: take away the "# " to
change it. Environment variables override this file: DRIFTD_SOURCE__TOPIC sets source.topic.
`driftd check` says what is wrong with it, line by line."""

_LEFT_OUT: Any = object()
_TASKS: Mapping[str, Active] = {
    "text": {
        ("model", "task"): "text",
        ("model", "features"): _LEFT_OUT,
        ("model", "infer_events"): _LEFT_OUT,
        ("model", "dimension"): _LEFT_OUT,
        ("fields", "input"): "text",
        ("fields", "features"): _LEFT_OUT,
    },
    "tabular": {
        ("model", "task"): "tabular",
        ("model", "base"): _LEFT_OUT,
        ("model", "max_length"): _LEFT_OUT,
        ("fields", "input"): _LEFT_OUT,
    },
}
_SOURCES: Mapping[str, Active] = {
    "kafka": {
        ("source", "kind"): "kafka",
        ("source", "topic"): "events",
        ("source", "bootstrap_servers"): "localhost:9092",
    },
    "file": {("source", "kind"): "file", ("source", "path"): "events.jsonl"},
    "stdin": {("source", "kind"): "stdin"},
}


def starter(task: Task = "text", source: Kind = "kafka") -> str:
    """A config file for the task and source, with every setting explained."""
    active: dict[tuple[str, ...], Any] = {
        ("name",): "model",
        **_TASKS[task],
        **_SOURCES[source],
        ("fields", "label"): "label",
        **{path: _default(_leaf(Config, path)) for path in _FOLDERS},
    }
    lines = [f"# {line}" for line in HEADER.splitlines()]
    lines += _section_lines(Config, (), active)
    return "\n".join(lines) + "\n"


def reference() -> str:
    """Every setting as Markdown tables, one a section."""
    blocks = []
    for path, variant, model in _sections(Config, (), ""):
        rows = [
            f"| `{name}` | {_type(field.annotation)} | {_shown(field)} | {_cell(field)} |"
            for name, field in model.model_fields.items()
            if not models_of(field)
        ]
        if not rows:
            continue
        title = f"## `{'.'.join(path)}`" if path else "## Top level"
        if variant:
            title += f" with `kind: {variant}`"
        about = (model.__doc__ or "").strip().splitlines()[0].replace("``", "`")
        table = ["| key | type | default | why |", "|---|---|---|---|", *rows]
        blocks.append("\n".join([title, "", about, "", *table]))
    return "\n\n".join(blocks) + "\n"


# ------------------------------------------------------------------------------- the file


def _section_lines(model: type[BaseModel], path: tuple[str, ...], active: Active) -> list[str]:
    lines: list[str] = []
    indent = "  " * len(path)
    for name, field in sorted(model.model_fields.items(), key=lambda item: item[0] != "kind"):
        here = (*path, name)
        if active.get(here) is _LEFT_OUT:
            continue
        inner = _chosen(field, here, active)
        if not path or inner:
            lines.append("")
        lines += _comment(field.description or "", indent)
        if inner:
            # An empty section means its defaults; one that may be absent as a whole stays absent.
            absent = field.default is None and not field.is_required()
            lines.append(f"{indent}{'# ' if absent else ''}{name}:")
            lines += _section_lines(inner, here, active)
        elif here in active:
            lines += _entry(name, active[here], indent)
        elif name == "kind":
            lines += _entry(name, get_args(field.annotation)[0], indent)
        elif field.is_required():
            lines.append(f"{indent}# {name}:  # required here")
        else:
            lines += [f"{indent}# {line}" for line in _entry(name, _default(field), "")]
    return lines


def _chosen(field: FieldInfo, path: tuple[str, ...], active: Active) -> type[BaseModel] | None:
    """The model of a section, of several variants the active or the default one."""
    models = models_of(field)
    if get_origin(field.annotation) in (tuple, list, dict):
        return None
    kind = active.get((*path, "kind"))
    if kind is None and field.default_factory:
        kind = getattr(_default(field), "kind", None)
    for model in models:
        if len(models) == 1 or kind in get_args(model.model_fields["kind"].annotation):
            return model
    return None


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _entry(name: str, value: Any, indent: str) -> list[str]:
    """``name: value`` as YAML; nested values in flow style where they fit on the line."""
    text = f"{indent}{name}: {_yaml(value)}".rstrip()
    if len(text) <= WIDTH or not isinstance(value, list | tuple):
        return [text]
    return [f"{indent}{name}:", *(f"{indent}  - {_yaml(item)}" for item in value)]


def _yaml(value: Any) -> str:
    plain = _plain(value)
    if plain is None:
        return ""
    if isinstance(plain, float):
        return f"{plain:g}"
    return (
        yaml.safe_dump(plain, default_flow_style=True, width=10_000, sort_keys=False)
        .split("\n...", 1)[0]
        .strip()
    )


# ------------------------------------------------------------------------------- the reference


def _sections(
    model: type[BaseModel], path: tuple[str, ...], variant: str
) -> Iterator[tuple[tuple[str, ...], str, type[BaseModel]]]:
    yield path, variant, model
    for name, field in model.model_fields.items():
        models = models_of(field)
        for inner in models:
            kinds = get_args(inner.model_fields["kind"].annotation) if len(models) > 1 else ()
            if get_origin(field.annotation) in (tuple, list):
                name_here = f"{name}[]"
            else:
                name_here = name
            yield from _sections(inner, (*path, name_here), kinds[0] if kinds else "")


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is Annotated:
        return _type(arguments[0])
    if origin in (tuple, list):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping to {_type(arguments[1])}"
    if arguments and type(None) in arguments:
        rest = [part for part in arguments if part is not type(None)]
        return " or ".join(_type(part) for part in rest) + ", or empty"
    if arguments:
        return " or ".join(_type(part) for part in arguments)
    names = {
        bool: "true or false",
        int: "whole number",
        float: "number",
        str: "text",
        Path: "path",
        SecretStr: "secret text",
    }
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _shown(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "by machine"
    text = _yaml(field.default)
    return f"`{text}`" if text else "empty"


def _cell(field: FieldInfo) -> str:
    return (field.description or "").replace("|", "\\|")


# ------------------------------------------------------------------------------- fields


def _leaf(model: type[BaseModel], path: tuple[str, ...]) -> FieldInfo:
    for step in path[:-1]:
        model = models_of(model.model_fields[step])[0]
    return model.model_fields[path[-1]]


def _default(field: FieldInfo) -> Any:
    value = field.get_default(call_default_factory=True, validated_data={})
    return None if value is PydanticUndefined else value


def _plain(value: Any) -> Any:
    """What YAML can write: enumerations, paths, tuples and models as plain values."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, BaseModel):
        return _plain(value.model_dump())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


if __name__ == "__main__":
    print(reference(), end="")
