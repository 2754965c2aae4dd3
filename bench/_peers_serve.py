"""Another project's server with a model that gives back what it got; runs in that project's Python.

``python _peers_serve.py LIBRARY PORT FOLDER``. Each batches where it can, in one process, with the
settings its documentation gives for that. Needs nothing of this project.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

BATCH = 64


def litserve(port: int, folder: Path) -> None:
    """LitServe, batching without waiting."""
    (folder / "identity_service.py").write_text(
        "import litserve as ls\n"
        "class Identity(ls.LitAPI):\n"
        "    def setup(self, device):\n"
        "        pass\n"
        "    def decode_request(self, request):\n"
        "        return request['x']\n"
        "    def batch(self, inputs):\n"
        "        return list(inputs)\n"
        "    def predict(self, inputs):\n"
        "        return inputs\n"
        "    def unbatch(self, output):\n"
        "        return list(output)\n"
        "    def encode_response(self, output):\n"
        "        return {'y': output}\n"
        "if __name__ == '__main__':\n"
        f"    model = Identity(max_batch_size={BATCH}, batch_timeout=0.0)\n"
        "    server = ls.LitServer(model, accelerator='cpu', workers_per_device=1)\n"
        f"    server.run(host='127.0.0.1', port={port}, generate_client_file=False,"
        " log_level='warning')\n"
    )
    os.execv(sys.executable, [sys.executable, str(folder / "identity_service.py")])


def mlserver(port: int, folder: Path) -> None:
    """MLServer with its adaptive batching, inference in the server's own process."""
    (folder / "identity_model.py").write_text(
        "from mlserver import MLModel\n"
        "from mlserver.types import InferenceResponse, ResponseOutput\n"
        "class Identity(MLModel):\n"
        "    async def load(self):\n"
        "        return True\n"
        "    async def predict(self, payload):\n"
        "        one = payload.inputs[0]\n"
        "        out = ResponseOutput(name='y', shape=one.shape, datatype=one.datatype,"
        " data=one.data)\n"
        "        return InferenceResponse(model_name=self.name, outputs=[out])\n"
    )
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": port + 1,
        "metrics_endpoint": None,
        "parallel_workers": 0,
        "debug": False,
    }
    model = {
        "name": "identity",
        "implementation": "identity_model.Identity",
        "max_batch_size": BATCH,
        "max_batch_time": 0.001,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    _become("mlserver", "start", str(folder))


def bentoml(port: int, folder: Path) -> None:
    """BentoML with its adaptive batching."""
    (folder / "service.py").write_text(
        "import bentoml\n"
        "@bentoml.service(workers=1)\n"
        "class Identity:\n"
        f"    @bentoml.api(batchable=True, max_batch_size={BATCH}, max_latency_ms=1000)\n"
        "    def predict(self, x: list[float]) -> list[float]:\n"
        "        return x\n"
    )
    os.chdir(folder)
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    _become("bentoml", "serve", "service:Identity", "--host", "127.0.0.1", "--port", str(port))


def kserve(port: int, folder: Path) -> None:
    """KServe's model server; its batcher is a container of its own, so there is none here."""
    ks = importlib.import_module("kserve")

    class Identity(ks.Model):  # type: ignore[misc, name-defined]
        def load(self) -> bool:
            self.ready = True
            return True

        def predict(self, payload: Any, headers: Any = None, *rest: Any, **more: Any) -> Any:
            return {"predictions": payload["instances"]}

    model = Identity("identity")
    model.load()
    server = ks.ModelServer(
        http_port=port, workers=1, enable_grpc=False, enable_latency_logging=False
    )
    asyncio.set_event_loop(asyncio.new_event_loop())
    server.start([model])


def _become(program: str, *arguments: str) -> None:
    path = Path(sys.executable).with_name(program)
    os.execv(path, [str(path), *arguments])


if __name__ == "__main__":
    {f.__name__: f for f in (litserve, mlserver, bentoml, kserve)}[sys.argv[1]](
        int(sys.argv[2]), Path(sys.argv[3])
    )
