"""A TCP proxy that can refuse, cut and stall, and a broker that clients reach through it only."""

import contextlib
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Literal


class TcpProxy:
    """Passes a port of loopback on to another; ``mode`` says how well.

    "pass"; "refuse": nothing listens; "stall": connections stay open and no byte passes.
    """

    def __init__(self, port: int, target: int) -> None:
        self.port, self.target = port, target
        self.mode: Literal["pass", "stall"] = "pass"
        self._context: ssl.SSLContext | None = None
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def tls(self, ca: Path, certificate: Path, key: Path) -> None:
        """From `start` on speak TLS, and ask clients for a certificate that ``ca`` has signed."""
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca)
        self._context.load_cert_chain(certificate, key)
        self._context.verify_mode = ssl.CERT_REQUIRED

    def start(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def refuse(self) -> None:
        """Stop listening and cut all connections, as a broker that is killed."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.cut()

    def cut(self) -> None:
        """Reset all connections."""
        with self._lock:
            found, self._open = self._open, set()
        for one in found:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            if self._context is not None:
                try:
                    near.settimeout(5)
                    near = self._context.wrap_socket(near, server_side=True)
                    near.settimeout(None)
                except OSError:  # ssl.SSLError is one
                    near.close()
                    continue
            try:
                far = socket.create_connection(("127.0.0.1", self.target), timeout=2)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                while self.mode == "stall":
                    time.sleep(0.02)
                other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)


class FragileBroker:
    """An embedded broker that clients reach through a `TcpProxy` only."""

    def __init__(self, proxy: TcpProxy, direct: str) -> None:
        self.proxy = proxy
        self.direct = direct
        self.bootstrap = f"127.0.0.1:{proxy.port}"
