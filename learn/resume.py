"""What a run of training leaves on disk after each round, so that a crash costs one round at most.

One safetensors file, replaced by an atomic rename: weights, the best weights so far, the
optimiser's moments, and the panel as JSON in its header.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from learn.strategy import Round

Standing = tuple[float, float]


@dataclass(slots=True)
class State:
    """A run after a whole round: ``in_stage`` rounds of stage number ``stage`` are done.

    before, best_score: validation accuracy and minus the loss, at the start and at the best. best:
    the trained parameters then.
    """

    before: Standing
    best_score: Standing
    best: list[torch.Tensor]
    stage: int = 0
    in_stage: int = 0
    rounds: list[Round] = field(default_factory=list)


def save(
    path: Path, state: State, trained: list[nn.Parameter], optimiser: torch.optim.Optimizer
) -> None:
    """Write the run to ``path``."""
    tensors = {f"best/{i}": tensor for i, tensor in enumerate(state.best)}
    for i, parameter in enumerate(trained):
        tensors[f"trained/{i}"] = parameter.detach()
        for name, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser/{i}/{name}"] = value
    panel = {
        "before": state.before,
        "best_score": state.best_score,
        "stage": state.stage,
        "in_stage": state.in_stage,
        "rounds": [asdict(line) for line in state.rounds],
    }
    partial = path.with_suffix(".partial")
    plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, partial, metadata={"panel": json.dumps(panel)})
    os.replace(partial, path)


def load(path: Path, trained: list[nn.Parameter]) -> tuple[State, Mapping[str, torch.Tensor]]:
    """The run that `save` left, its weights put into ``trained``; and the optimiser's tensors."""
    with safe_open(path, framework="pt") as file:
        panel = json.loads(file.metadata()["panel"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with torch.no_grad():
        for i, parameter in enumerate(trained):
            parameter.copy_(tensors[f"trained/{i}"])
    best = [tensors[f"best/{i}"].to(p.device) for i, p in enumerate(trained)]
    state = State(
        before=tuple(panel["before"]),
        best_score=tuple(panel["best_score"]),
        best=best,
        stage=panel["stage"],
        in_stage=panel["in_stage"],
        rounds=[Round(**line) for line in panel["rounds"]],
    )
    return state, tensors


def restore_optimiser(
    optimiser: torch.optim.Optimizer,
    trained: list[nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Give the optimiser the moments that `save` wrote."""
    for i, parameter in enumerate(trained):
        prefix = f"optimiser/{i}/"
        found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if found:
            optimiser.state[parameter] = {
                # AdamW counts its steps on the CPU.
                name: value if name == "step" else value.to(parameter.device)
                for name, value in found.items()
            }
