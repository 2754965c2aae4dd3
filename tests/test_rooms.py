"""Which room may import which, and what must run without the training extra."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = frozenset({"daemon", "drift", "learn", "registry", "deploy"})
ALLOWED = {
    "daemon": ROOMS,
    "drift": {"drift"},
    "learn": {"learn"},
    "registry": {"registry"},
    "deploy": {"deploy", "registry"},
}
TRAINING = ("torch", "transformers", "peft", "onnx", "kafka", "river")

BLOCKED = """
import sys
class Hook:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)
sys.meta_path.insert(0, Hook())
{statement}
"""


def imported(tree):
    """The top packages that a module imports, with line numbers; relative imports stay inside."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0], node.lineno


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_room_imports_only_what_it_may(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for name, line in imported(ast.parse(path.read_text(encoding="utf-8")))
        if name in ROOMS - ALLOWED[room]
    ]
    assert not wrong


def run_blocked(statement):
    code = BLOCKED.format(blocked=TRAINING, statement=statement)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("package", TRAINING)
def test_the_hook_blocks(package):
    assert f"{package} is blocked" in run_blocked(f"import {package}").stderr


@pytest.mark.parametrize(
    "statement", ["import deploy.server, daemon.cli", "import registry", "import drift, learn"]
)
def test_imports_without_the_training_extra(statement):
    done = run_blocked(statement)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["serve", "status", "versions", "rollback", "journal"])
def test_operating_without_the_training_extra(command):
    done = run_blocked(f"from daemon.cli import main; main([{command!r}, '--help'])")
    assert done.returncode == 0, done.stderr
