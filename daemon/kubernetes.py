"""The few calls of the Kubernetes API that a pod makes to run Jobs in its own namespace.

By the pod's service account, whose files the kubelet renews: they are read anew for every call. A
client library would bring forty megabytes for four requests.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT_SECONDS = 10.0


class KubernetesError(Exception):
    """The API server said no; ``status`` is its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Jobs:
    """The Jobs of one namespace.

    Every method raises `KubernetesError`, or OSError where nobody answers.
    host, port: of the API server. account: folder with ``token``, ``ca.crt`` and ``namespace``.
    """

    def __init__(self, host: str, port: int, account: Path = ACCOUNT) -> None:
        self._host, self._port, self._account = host, port, account

    @classmethod
    def of_this_pod(cls) -> Jobs:
        """By what the kubelet tells every pod. Raises `KubernetesError` outside of one."""
        host = os.environ.get("KUBERNETES_SERVICE_HOST")
        if not host or not (ACCOUNT / "token").exists():
            raise KubernetesError(
                0,
                "trainer.job needs a pod with a service account, and there is no "
                f"{ACCOUNT}/token or no KUBERNETES_SERVICE_HOST; set trainer.job.enabled: false "
                "to train beside the daemon",
            )
        return cls(host, int(os.environ.get("KUBERNETES_SERVICE_PORT", "443")))

    def create(self, manifest: dict[str, Any]) -> None:
        """Make the Job of this manifest; one of that name that exists is left as it is."""
        try:
            self._ask("POST", "", body=manifest)
        except KubernetesError as error:
            if error.status != http.client.CONFLICT:
                raise

    def ended(self, name: str) -> str | None:
        """None while the Job goes on, else how it ended; "" if it is complete."""
        try:
            status = self._ask("GET", name).get("status", {})
        except KubernetesError as error:
            if error.status == http.client.NOT_FOUND:
                return "somebody deleted it"
            raise
        for condition in status.get("conditions", []):
            if condition["status"] == "True" and condition["type"] == "Complete":
                return ""
            if condition["status"] == "True" and condition["type"] == "Failed":
                facts = (condition.get("reason", "Failed"), condition.get("message", ""))
                return ": ".join(filter(None, facts))
        return None

    def delete(self, name: str) -> None:
        """Delete the Job, if it exists, and its pods."""
        try:
            self._ask("DELETE", name, {"propagationPolicy": "Background"})
        except KubernetesError as error:
            if error.status != http.client.NOT_FOUND:
                raise

    def delete_all(self, selector: str) -> None:
        """Delete all Jobs with these labels, ``name=value,...``, and their pods."""
        self._ask("DELETE", "", {"labelSelector": selector, "propagationPolicy": "Background"})

    def _ask(
        self,
        method: str,
        name: str,
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        namespace = (self._account / "namespace").read_text().strip()
        path = f"/apis/batch/v1/namespaces/{quote(namespace)}/jobs"
        if name:
            path += f"/{quote(name)}"
        if query:
            path += f"?{urlencode(query)}"
        headers = {
            "Authorization": f"Bearer {(self._account / 'token').read_text().strip()}",
            "Content-Type": "application/json",
        }
        context = ssl.create_default_context(cafile=str(self._account / "ca.crt"))
        connection = http.client.HTTPSConnection(
            self._host, self._port, timeout=TIMEOUT_SECONDS, context=context
        )
        try:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            found = response.read()
        except http.client.HTTPException as error:
            raise OSError(f"the API server broke off: {type(error).__name__}") from error
        finally:
            connection.close()
        try:
            answer = json.loads(found)
        except ValueError:
            answer = {"message": found[:200].decode(errors="replace")}
        if response.status >= 300:
            said = answer.get("message") or response.reason
            raise KubernetesError(response.status, f"{method} {path}: {response.status}, {said}")
        return dict(answer)
