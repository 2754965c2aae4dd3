"""The chart, linted and rendered by Helm as a library: no cluster and no command are needed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "driftd"
CI = sorted((CHART / "ci").glob("*-values.yaml"))

Manifests = list[dict[str, Any]]


@pytest.fixture(scope="session")
def render() -> Callable[..., Manifests]:
    """Renders the chart with values: all its manifests."""
    helm = pytest.importorskip("helm_python", reason="pip install helm-python-sdk")
    chart = helm.Chart.load(CHART)

    def manifests(values: dict[str, Any]) -> Manifests:
        files = chart.render(values, name="driftd", namespace="ml")
        return [
            document
            for path, text in files.items()
            if path.endswith(".yaml")
            for document in yaml.safe_load_all(text)
            if document
        ]

    return manifests


@pytest.fixture(scope="session", params=CI, ids=lambda path: path.name.removesuffix("-values.yaml"))
def values(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The values of one file in ci/."""
    return yaml.safe_load(request.param.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def manifests(render: Callable[..., Manifests], values: dict[str, Any]) -> Manifests:
    """What these values make."""
    return render(values)
