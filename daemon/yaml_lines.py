"""YAML that remembers where everything stood: plain data plus the line of every key and value.

Config errors must name a line, and pydantic only knows paths. The scalars follow YAML 1.2's core
schema, so `on`, `no`, `12:30` and `2024-01-01` stay text and `1e-3` is a number, and the text of
each scalar as written is kept, so that a group called 007 keeps its zeros.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A position in a text; line and column count from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something wrong with the YAML itself, at a place."""

    place: Place
    key: str
    message: str


@dataclass(slots=True)
class Document:
    """``data`` as plain Python values, and for each path where its key and its value stood.

    ``texts`` has the scalars of ``data`` as they were written, for those written without quotes.
    """

    data: Any = None
    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)
    texts: dict[Path, str] = field(default_factory=dict)
    flaws: list[Flaw] = field(default_factory=list)

    def place(self, path: Path) -> Place | None:
        """The key at ``path``, else the nearest thing around it that has a place."""
        while path:
            found = self.keys.get(path) or self.values.get(path)
            if found:
                return found
            path = path[:-1]
        return self.values.get(())


MERGE = "tag:yaml.org,2002:merge"
COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class _CoreLoader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's core schema instead of 1.1's surprises."""


_CoreLoader.yaml_implicit_resolvers = {}  # a table of its own: the parent shares its one


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("merge", r"<<", ["<"]),
):
    _CoreLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first
    )


def read(text: str) -> Document:
    """Parse one YAML document; what is wrong with it lands in ``flaws``, never in an exception.

    >>> document = read("a: 1\\nb:\\n  c: x\\n  c: y\\n")
    >>> document.data, document.place(("b", "c"))
    ({'a': 1, 'b': {'c': 'x'}}, Place(line=3, column=3))
    >>> document.flaws[0].place.line, document.flaws[0].message
    (4, 'key appears twice, first on line 3')
    """
    document = Document()
    try:
        loader = _CoreLoader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
        context = f" ({error.context})" if error.context else ""
        document.flaws.append(Flaw(place, "", f"not valid YAML: {error.problem}{context}"))
        return document
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"not valid YAML: character U+{int(error.character):04X} is not allowed"
        document.flaws.append(Flaw(Place(line, 1), "", message))
        return document
    except RecursionError:
        document.flaws.append(Flaw(Place(1, 1), "", "not valid YAML: nested too deeply"))
        return document
    if node is not None:
        document.data = _build(document, node, (), frozenset())
    return document


def scalar(text: str) -> tuple[Any, str | None]:
    """One value written as YAML, as in an environment variable: the value and a flaw, if any.

    >>> scalar("[head, full]"), scalar("1e-3"), scalar("on")
    ((['head', 'full'], None), (0.001, None), ('on', None))
    """
    document = read(text)
    return document.data, document.flaws[0].message if document.flaws else None


def dotted(path: Path) -> str:
    """``("a", "b", 0)`` as ``a.b[0]``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _place(node: Node) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)


def _flaw(document: Document, node: Node, path: Path, message: str) -> None:
    document.flaws.append(Flaw(_place(node), dotted(path), message))


def _build(document: Document, node: Node, path: Path, open_nodes: frozenset[int]) -> Any:
    document.values[path] = _place(node)
    if isinstance(node, ScalarNode):
        return _scalar(document, node, path)
    if id(node) in open_nodes:
        _flaw(document, node, path, "an alias refers to what it stands in")
        return None
    if node.tag not in COLLECTIONS:
        _flaw(document, node, path, f"the tag {node.tag} is not allowed: plain values only")
        return None
    inside = open_nodes | {id(node)}
    if isinstance(node, SequenceNode):
        return [_build(document, item, (*path, i), inside) for i, item in enumerate(node.value)]
    assert isinstance(node, MappingNode)
    return _mapping(document, node, path, inside)


def _mapping(
    document: Document, node: MappingNode, path: Path, inside: frozenset[int]
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:  # what is merged first, so that own keys win
        if key_node.tag == MERGE:
            many = isinstance(value_node, SequenceNode)
            for source in value_node.value if many else [value_node]:
                if not isinstance(source, MappingNode) or id(source) in inside:
                    _flaw(document, source, path, "'<<' needs a mapping to merge")
                    continue
                result = _mapping(document, source, path, inside | {id(source)}) | result
    own: set[str] = set()
    for key_node, value_node in node.value:
        if key_node.tag == MERGE:
            continue
        if not isinstance(key_node, ScalarNode):
            _flaw(document, key_node, path, "a key must be plain text")
            continue
        key: str = key_node.value
        here = (*path, key)
        if key in own:
            first = document.keys[here].line
            _flaw(document, key_node, here, f"key appears twice, first on line {first}")
            continue
        own.add(key)
        document.keys[here] = _place(key_node)
        result[key] = _build(document, value_node, here, inside)
    return result


def _scalar(document: Document, node: ScalarNode, path: Path) -> Any:
    text: str = node.value
    if node.style is None:
        document.texts[path] = text
    try:
        match node.tag.removeprefix("tag:yaml.org,2002:"):
            case "null":
                return None
            case "bool":
                return {"true": True, "false": False}[text.lower()]
            case "int":
                return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
            case "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
            case "str":
                return text
    except (ValueError, KeyError):
        _flaw(document, node, path, f"does not fit its tag {node.tag}")
        return None
    _flaw(document, node, path, f"the tag {node.tag} is not allowed: plain values only")
    return None
