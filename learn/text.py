"""Text encoders: a pretrained transformer, mean pooling over the tokens, unit length.

As sentence-transformers does it (Reimers & Gurevych 2019), so that its models embed alike here.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from learn.parts import Prefix, attention

_HIDDEN = -1e9


class BaseNotFound(Exception):  # noqa: N818
    """No encoder is found under that name; the message says what was tried."""


class TextEncoder(nn.Module):
    """Token ids to unit embeddings, float32 [n, d]; with a prompt or a prefix where it has one.

    A transformer narrower than ``dimension`` is projected to it: a student's is to its teacher's.
    """

    transformer: Any
    prompt: nn.Parameter | None
    projection: nn.Linear | None

    def __init__(self, transformer: Any, dimension: int) -> None:
        super().__init__()
        self.transformer = transformer
        self.register_parameter("prompt", None)
        width = transformer.config.hidden_size
        self.projection = nn.Linear(width, dimension) if width != dimension else None

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """input_ids, attention_mask: int64 [n, t]."""
        hidden = self._hidden(input_ids, attention_mask)
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)
        if self.projection is not None:
            mean = self.projection(mean)
        return nn.functional.normalize(mean, dim=-1)

    def _hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The tokens' last hidden states, [n, t, d]: those of virtual tokens are left out."""
        layers: list[Any] = [m for m in attention(self.transformer) if hasattr(m, "prefix_key")]
        if self.prompt is None and not layers:
            found: torch.Tensor = self.transformer(
                input_ids=input_ids, attention_mask=attention_mask
            )[0]
            return found
        n, t = input_ids.shape
        words = self.transformer.get_input_embeddings()(input_ids)
        places = torch.arange(t, device=input_ids.device)
        prompted = 0 if self.prompt is None else self.prompt.shape[1]
        if self.prompt is not None:
            words = torch.cat([self.prompt.expand(n, -1, -1), words], dim=1)
            places = torch.cat([places.new_zeros(prompted), places])
        virtual = prompted + (layers[0].prefix_key.shape[2] if layers else 0)
        seen = torch.cat([attention_mask.new_ones(n, virtual), attention_mask], dim=1)
        hidden: torch.Tensor = self.transformer(
            inputs_embeds=words,
            # Added to the scores of attention: nothing for what is seen, a lot off for the rest.
            attention_mask=(1.0 - seen[:, None, None, :].to(words.dtype)) * _HIDDEN,
            position_ids=places.unsqueeze(0),
            past_key_values=Prefix(layers) if layers else None,
        )[0]
        return hidden[:, prompted:]


def resolve_base(spec: str) -> Path:
    """The folder of a pretrained encoder.

    A folder; ``package:NAME`` (or a plain name) for a model that an installed package carries; or
    a hub id, fetched as safetensors only. Raises `BaseNotFound`.
    """
    folder = Path(spec).expanduser()
    if (folder / "config.json").exists():
        return folder
    tried = [f"folder {folder}"]
    name = spec.removeprefix("package:")
    try:
        for file in importlib.metadata.files(name) or ():
            beside = Path(str(file.locate())).parent
            if file.name == "config.json" and (beside / "model.safetensors").exists():
                return beside
        tried.append(f"package {name} (installed, but carries no model)")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        tried.append(f"package {name}")
    if not spec.startswith("package:") and spec.count("/") == 1:
        from huggingface_hub import snapshot_download

        try:
            wanted = ["*.json", "*.safetensors", "*.txt"]
            return Path(snapshot_download(spec, allow_patterns=wanted))
        except Exception as error:
            tried.append(f"hub id {spec} ({type(error).__name__})")
    raise BaseNotFound(
        f"model.base {spec!r} is not found; tried {', '.join(tried)}. Give a folder with "
        "config.json and model.safetensors, or install the package that carries it"
    )


def pretrained_encoder(spec: str) -> tuple[TextEncoder, dict[str, Any]]:
    """The encoder with its pretrained weights, and its description for ``model.json``."""
    folder = resolve_base(spec)
    transformer = AutoModel.from_pretrained(
        folder,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        dtype=torch.float32,
        attn_implementation="sdpa",
    )
    config, width = transformer.config.to_dict(), transformer.config.hidden_size
    description = {"dimension": width, "base": spec, "encoder": config}
    return TextEncoder(transformer, width), description


def empty_encoder(description: dict[str, Any]) -> TextEncoder:
    """The same architecture without weights, from its description."""
    values = dict(description["encoder"])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    transformer = AutoModel.from_config(config, trust_remote_code=False)
    return TextEncoder(transformer, description["dimension"])
