"""What is built from code is what the code builds, and every value says what it does."""

import tomllib
from pathlib import Path

import pytest
import yaml

from helm.builder.files import CHART, ROOT, built
from helm.builder.values import read_values

VALUES = (CHART / "values.yaml").read_text(encoding="utf-8")

# Set by tests or by users of rare platforms only.
OTHERWISE_TESTED = {
    "daemon.terminationGracePeriodSeconds",
    "registry.size",
    "registry.retain",
    "server.image.tag",
    "server.workers",
    "server.resources",
    "server.disruption.enabled",
    "server.kserve.annotations",
    "serviceAccount.create",
    "serviceAccount.name",
    "podSecurity",
    "security",
    "networkPolicy.enabled",
    "tests.enabled",
}


@pytest.mark.parametrize("path", built(), ids=lambda path: path.name)
def test_is_up_to_date(path: Path) -> None:
    assert path.exists()
    assert path.read_text(encoding="utf-8") == built()[path], "run `python -m helm.builder`"


def test_there_is_nothing_built_that_is_not_built_any_more() -> None:
    there = set((CHART / "files").rglob("*.*"))
    assert there == {path for path in built() if CHART / "files" in path.parents}


def test_every_value_says_what_it_does() -> None:
    described = {value.path for value in read_values(VALUES)}

    def said(path: tuple[str, ...], tree: object) -> None:
        if any(path[:length] in described for length in range(1, len(path) + 1)):
            return
        assert isinstance(tree, dict), f"{'.'.join(path)} has no comment"
        for name, below in tree.items():
            said((*path, name), below)

    said((), yaml.safe_load(VALUES))


def test_files_in_ci_set_every_value() -> None:
    files = [yaml.safe_load(path.read_text()) for path in (CHART / "ci").glob("*.yaml")]

    def sets(tree: object, path: tuple[str, ...]) -> bool:
        for step in path:
            if not isinstance(tree, dict) or step not in tree:
                return False
            tree = tree[step]
        return True

    unset = {
        ".".join(value.path)
        for value in read_values(VALUES)
        if not any(sets(file, value.path) for file in files)
    }
    assert unset == OTHERWISE_TESTED


def test_the_chart_is_of_the_same_version_as_the_code() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == project["version"]
