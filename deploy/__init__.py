"""deploy: from a trained module to answers. Knows ONNX; torch only inside `deploy.export`.

config       every default, with its reason
preprocess   texts and rows to the graph's feeds, the same code in training and serving
session      one version's INT8 graph: probabilities, logits and embeddings in one pass
river_version, river_model  models of river as versions, which have no graph (needs river)
export       torch to FP32 ONNX to INT8 (needs torch and onnx)
patch        new weights into an existing graph (needs onnx)
measure      size, speed and accuracy of an INT8 graph beside its FP32 original
access, tls  bearer tokens by scope, and certificates that renew; the daemon's port uses them too
rpc, rpc_messages  the server over gRPC (needs grpcio)
tracing      spans of what the server does (needs opentelemetry)
batcher, engine, versions, watcher, metrics, answering, protocol, binary, repository,
             openapi, api, connection, listening, crew, server
             the inference server, from the queue outwards
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.config import BatchConfig, ExportConfig, ServerConfig
    from deploy.errors import DeployError
    from deploy.export import export_onnx, quantize_int8
    from deploy.patch import patch_head, patch_weights
    from deploy.preprocess import TabularPreprocessor, TextPreprocessor, load_preprocessor
    from deploy.server import InferenceServer, serve
    from deploy.session import Head, Prediction, Session

_HOME = {
    "BatchConfig": "config",
    "DeployError": "errors",
    "ExportConfig": "config",
    "Head": "session",
    "InferenceServer": "server",
    "Prediction": "session",
    "ServerConfig": "config",
    "Session": "session",
    "TabularPreprocessor": "preprocess",
    "TextPreprocessor": "preprocess",
    "export_onnx": "export",
    "load_preprocessor": "preprocess",
    "patch_head": "patch",
    "patch_weights": "patch",
    "quantize_int8": "export",
    "serve": "server",
}

__all__ = [
    "BatchConfig",
    "DeployError",
    "ExportConfig",
    "Head",
    "InferenceServer",
    "Prediction",
    "ServerConfig",
    "Session",
    "TabularPreprocessor",
    "TextPreprocessor",
    "export_onnx",
    "load_preprocessor",
    "patch_head",
    "patch_weights",
    "quantize_int8",
    "serve",
]


def __getattr__(name: str) -> Any:
    """Import a public name's module when it is first asked for: some need torch or onnx."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"deploy.{_HOME[name]}"), name)
