"""From YAML and environment to a validated config, or to a list of everything that is wrong.

Knows pydantic models in general and no setting in particular. It keeps track of where each value
came from, so that a problem can name its line or its variable, and puts pydantic's findings into
words for the person who wrote the file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from daemon import yaml_lines

PREFIX = "DRIFTD_"
NESTING = "__"
# Read by the command line.
NOT_SETTINGS = frozenset(
    {
        "DRIFTD_CA_FILE",
        "DRIFTD_CERT_FILE",
        "DRIFTD_CONFIG",
        "DRIFTD_DATA",
        "DRIFTD_TOKEN",
        "DRIFTD_TOKEN_FILE",
        "DRIFTD_URL",
    }
)
# Kubernetes sets these in every pod beside a Service called driftd; they are not meant for us.
SERVICE_LINK = re.compile(
    r"^DRIFTD_(.*_)?(SERVICE_(HOST|PORT)(_.*)?|PORT(_\d+_(TCP|UDP|SCTP).*)?)$"
)

# Pydantic's types of errors whose own words speak of Python.
PLAIN_WORDS = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "must be a section"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "must be a list"),
    **dict.fromkeys(("string_type", "path_type"), "must be text"),
}

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong: where (a file and line, or a variable), which key, and what."""

    key: str
    message: str
    file: str | None = None
    line: int | None = None
    column: int | None = None
    variable: str | None = None

    def __str__(self) -> str:
        """One line, as compilers write them, so that editors can jump to it."""
        where = self.variable or ":".join(
            str(part) for part in (self.file, self.line, self.column) if part is not None
        )
        return ": ".join(part for part in (where, self.key, self.message) if part)


class ConfigError(Exception):
    """The configuration cannot be used; ``problems`` has all that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class DisagreementError(ValueError):
    """Sections that contradict each other: (path, message) for each."""

    def __init__(self, found: list[tuple[yaml_lines.Path, str]]) -> None:
        super().__init__("; ".join(f"{yaml_lines.dotted(path)}: {text}" for path, text in found))
        self.found = found


def load(root: type[M], path: Path | str, environ: Mapping[str, str]) -> M:
    """Read the YAML file at ``path``, let the environment override it, validate as a ``root``.

    Raises:
        ConfigError: with every problem found.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError([Problem("", "is not UTF-8 text", file=str(path))]) from None
    except OSError as error:
        advice = "" if path.exists() else "; `driftd init` writes one, -c names another"
        message = f"cannot read it: {error.strerror}{advice}"
        raise ConfigError([Problem("", message, file=str(path))]) from None
    return _Reading(root, str(path), yaml_lines.read(text), environ).config()


class _Reading(Generic[M]):
    """One attempt to make a config; knows where everything came from."""

    def __init__(
        self,
        root: type[M],
        file: str,
        document: yaml_lines.Document,
        environ: Mapping[str, str],
    ) -> None:
        self._root = root
        self._file = file
        self._document = document
        self._variables: dict[yaml_lines.Path, str] = {}
        self._problems = [
            Problem(flaw.key, flaw.message, file, flaw.place.line, flaw.place.column)
            for flaw in document.flaws
        ]
        self._data: dict[str, Any] = {}
        if isinstance(document.data, dict):
            self._data = document.data
        elif document.data is not None:
            self._add((), "must be a mapping of sections, as `driftd init` writes it")
        for name in sorted(environ):
            ours = name.startswith(PREFIX) and name not in NOT_SETTINGS
            if ours and (NESTING in name or not SERVICE_LINK.match(name)):
                self._override(name, environ[name])
        self._drop_empty(self._data, ())

    def config(self) -> M:
        """The config. Raises `ConfigError`."""
        if self._document.flaws and not self._data:
            raise ConfigError(self._problems)
        try:
            config = self._validate()
        except ValidationError as error:
            for item in error.errors(include_url=False):
                self._explain(item)
        if self._problems:
            raise ConfigError(sorted(self._problems, key=_order))
        return config

    def _validate(self) -> M:
        try:
            return self._root.model_validate(self._data)
        except ValidationError as error:
            # `group: 007` is a number to YAML, but a text was wanted: take it as it was written.
            found = [
                self._path(item["loc"]) for item in error.errors() if item["type"] == "string_type"
            ]
            texts = {
                path: self._document.texts[path] for path in found if path in self._document.texts
            }
            if not texts:
                raise
            for path, text in texts.items():
                _set(self._data, path, text)
            return self._root.model_validate(self._data)

    def _drop_empty(self, data: dict[str, Any], path: yaml_lines.Path) -> None:
        """A section whose keys are all commented out is null to YAML; we mean its defaults."""
        section = self._section(path)
        for key, value in list(data.items()):
            field = section.model_fields.get(key) if section else None
            if isinstance(value, dict):
                self._drop_empty(value, (*path, key))
            elif (
                value is None
                and field
                and models_of(field)
                and type(None) not in parts_of(field.annotation)
            ):
                del data[key]

    # ---------------------------------------------------------------- the environment

    def _override(self, name: str, text: str) -> None:
        path: yaml_lines.Path = tuple(
            part.lower() for part in name.removeprefix(PREFIX).split(NESTING)
        )
        self._variables[path] = name
        if not all(path):
            self._add(path, "names no setting: DRIFTD_SECTION__KEY is the form")
            return
        value, flaw = yaml_lines.scalar(text)
        if flaw or isinstance(value, str):
            value = text  # quotes, hashes and colons are part of a text, such as a password
        if not _set(self._data, path, value):
            self._add(path, "lies inside of something that is not a section")
            return
        self._document.texts[path] = text

    # ---------------------------------------------------------------- explaining

    def _explain(self, item: Mapping[str, Any]) -> None:
        """Turn one of pydantic's errors into a problem in our words."""
        path, kind, context = self._path(item["loc"]), item["type"], item.get("ctx") or {}
        cause = context.get("error")
        if isinstance(cause, DisagreementError):
            for where, message in cause.found:
                self._add(where, message)
        elif kind == "extra_forbidden":
            self._add(path, "unknown key" + self._suggest_key(path))
        elif kind == "missing":
            self._add(path, "is required" + self._describe(path))
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            self._explain_tag(path, context)
        else:
            message = PLAIN_WORDS.get(kind) or re.sub(
                r"^(Input|Value|String|Tuple|List|Dictionary) should ", "must ", item["msg"]
            )
            message = message.removeprefix("Value error, ")
            if cause is None:
                message += self._given(path, item["input"]) + self._suggest_value(item)
            self._add(path, message)

    def _explain_tag(self, path: yaml_lines.Path, context: Mapping[str, Any]) -> None:
        tags = sorted(
            tag
            for variant in self._variants(path)
            for tag in get_args(variant.model_fields["kind"].annotation)
        )
        given = context.get("tag")
        message = f"must be one of {', '.join(tags)}"
        if given is not None:
            message += f", not {given!r}" + _did_you_mean(str(given), tags)
        self._add((*path, "kind"), message)

    def _given(self, path: yaml_lines.Path, value: object) -> str:
        if value is None:
            return ", not empty"
        if not isinstance(value, str | int | float | bool) or self._secret(path):
            return ""
        text = repr(value) if not isinstance(value, bool) else str(value).lower()
        return f", not {text if len(text) <= 60 else text[:57] + '...'}"

    def _suggest_value(self, item: Mapping[str, Any]) -> str:
        expected = (item.get("ctx") or {}).get("expected")
        if item["type"] != "literal_error" or not isinstance(item["input"], str) or not expected:
            return ""
        return _did_you_mean(item["input"], re.findall(r"'([^']*)'", expected))

    def _suggest_key(self, path: yaml_lines.Path) -> str:
        section = self._section(path[:-1])
        if section is None:
            return ""
        key = str(path[-1])
        close = _did_you_mean(key, section.model_fields)
        if close:
            return close
        for name in self._root.model_fields:
            for variant in self._variants((name,)):
                if key in variant.model_fields:
                    return f"; {key!r} belongs in section '{name}'"
        return ""

    def _describe(self, path: yaml_lines.Path) -> str:
        section = self._section(path[:-1])
        field = section.model_fields.get(str(path[-1])) if section else None
        return f": {field.description}" if field and field.description else ""

    def _secret(self, path: yaml_lines.Path) -> bool:
        section = self._section(path[:-1]) if path else None
        field = section.model_fields.get(str(path[-1])) if section else None
        return field is None or SecretStr in parts_of(field.annotation)

    def _add(self, path: yaml_lines.Path, message: str) -> None:
        key = yaml_lines.dotted(path)
        for end in range(len(path), 0, -1):
            if path[:end] in self._variables:
                self._problems.append(Problem(key, message, variable=self._variables[path[:end]]))
                return
        if path not in self._document.keys:  # a section that only variables speak of
            for variable_path, name in self._variables.items():
                if variable_path[: len(path)] == path:
                    self._problems.append(Problem(key, message, variable=name))
                    return
        place = self._document.place(path)
        line, column = (place.line, place.column) if place else (None, None)
        self._problems.append(Problem(key, message, self._file, line, column))

    # ---------------------------------------------------------------- finding the way

    def _path(self, location: tuple[int | str, ...]) -> yaml_lines.Path:
        """Pydantic's location without the names of union members that it puts between."""
        path: list[str | int] = []
        here: Any = self._data
        for i, step in enumerate(location):
            last = i == len(location) - 1
            inside = isinstance(here, dict) and step in here
            if inside or (isinstance(here, list) and isinstance(step, int) and step < len(here)):
                here = here[step]
            elif not (last and isinstance(here, dict) and self._has_field(tuple(path), step)):
                continue
            path.append(step)
        return tuple(path)

    def _has_field(self, path: yaml_lines.Path, name: int | str) -> bool:
        section = self._section(path)
        return section is not None and name in section.model_fields

    def _section(self, path: yaml_lines.Path) -> type[BaseModel] | None:
        """The model of the section at ``path``, of several variants the one that is meant."""
        section: type[BaseModel] | None = self._root
        entry = False  # whether this step is a user's own key, or a place in a list
        for end, step in enumerate(path, start=1):
            if entry or isinstance(step, int):
                entry = False
                continue
            if section is None or step not in section.model_fields:
                return None
            entry = get_origin(section.model_fields[step].annotation) is dict
            section = self._variant(section, path[:end])
        return section

    def _variant(self, parent: type[BaseModel], path: yaml_lines.Path) -> type[BaseModel] | None:
        variants = models_of(parent.model_fields[str(path[-1])])
        if len(variants) <= 1:
            return next(iter(variants), None)
        kind = _get(self._data, (*path, "kind"))
        return next(
            (v for v in variants if kind in get_args(v.model_fields["kind"].annotation)), None
        )

    def _variants(self, path: yaml_lines.Path) -> list[type[BaseModel]]:
        parent = self._section(path[:-1])
        return models_of(parent.model_fields[str(path[-1])]) if parent else []


def models_of(field: FieldInfo) -> list[type[BaseModel]]:
    """The sections that a field may hold."""
    return [
        part
        for part in parts_of(field.annotation)
        if isinstance(part, type) and issubclass(part, BaseModel)
    ]


def parts_of(annotation: Any) -> list[Any]:
    """The types that an annotation is made of."""
    inner = get_args(annotation)
    if not inner or getattr(annotation, "__origin__", None) is Literal:
        return [annotation]
    return [part for argument in inner for part in parts_of(argument)]


def _set(data: dict[str, Any], path: yaml_lines.Path, value: Any) -> bool:
    """Put a value at a path, making sections on the way; false if something else is there."""
    here: Any = data
    for step in path[:-1]:
        if isinstance(here, dict) and here.get(step) is None:
            here[step] = {}
        here = _inside(here, step)
    if isinstance(here, list) and isinstance(path[-1], int):
        here[path[-1]] = value
    elif isinstance(here, dict):
        here[str(path[-1])] = value
    else:
        return False
    return True


def _inside(data: Any, step: str | int) -> Any:
    if isinstance(data, list):
        return data[step] if isinstance(step, int) else None
    return data.get(step) if isinstance(data, dict) else None


def _get(data: Any, path: yaml_lines.Path) -> Any:
    for step in path:
        data = _inside(data, step)
    return data


def _did_you_mean(word: str, words: Any) -> str:
    close = difflib.get_close_matches(word, [str(w) for w in words], n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _order(problem: Problem) -> tuple[bool, int, str]:
    return problem.variable is not None, problem.line or 0, problem.variable or ""
