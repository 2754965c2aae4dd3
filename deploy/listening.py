"""The listening socket: bound with a clear word when it cannot be, and closed without a reset.

Closing a listener resets the connections that the kernel has taken on but the program has not
yet seen; their clients had every reason to think they were through. `turn_away` comes first.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct

from deploy.errors import BindError

# Linux; the socket module does not name it.
_SO_ATTACH_FILTER = 26

# The kernel asks a connection that was silent so long, and gives up when its answers lie so long.
_SILENT_SECONDS = 60

# A packet filter (classic BPF) in four instructions: code, jump if true, jump if false, operand.
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the TCP header's flags
    (0x45, 0, 1, 0x02),  # is it a SYN, the first packet of a connection?
    (0x06, 0, 0, 0),  # then drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # else let it pass whole
)


def bind(host: str, port: int, backlog: int, *, shared: bool = False) -> socket.socket:
    """A listening socket. Raises `BindError`, saying why and what to do.

    shared: other processes of this user may listen on the port too, if they share it as well.
    """
    listener = _bound(host, port, shared)
    listener.listen(backlog)
    listener.setblocking(False)
    return listener


def reserve(host: str, port: int) -> socket.socket:
    """A socket that keeps a port for processes that will share it; it takes no connections.

    Raises `BindError`, if anything else has the port too.
    """
    with _bound(host, port, shared=False) as alone:
        port = alone.getsockname()[1]
    return _bound(host, port, shared=True)


def _bound(host: str, port: int, shared: bool) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise BindError(f"cannot listen on host {host!r}: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _let_go_of_the_dead(listener)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            advice = "stop the process that uses it, or set server.port to a free one"
        elif error.errno == errno.EACCES:
            advice = "ports below 1024 need privileges: choose another"
        else:
            advice = "choose an address of this machine"
        raise BindError(f"cannot listen on {host}:{port}: {error.strerror}; {advice}") from error
    return listener


def _let_go_of_the_dead(listener: socket.socket) -> None:
    """End connections, which inherit this, whose other side is gone or takes no answer."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, _SILENT_SECONDS),
        (socket.TCP_KEEPINTVL, _SILENT_SECONDS // 4),
        (socket.TCP_KEEPCNT, 4),
        (socket.TCP_USER_TIMEOUT, _SILENT_SECONDS * 1000),
    ):
        listener.setsockopt(socket.IPPROTO_TCP, option, value)


def turn_away(listener: socket.socket) -> None:
    """Begin no new connection on ``listener``; those begun can still be accepted.

    Raises OSError where the system has no such filter.
    """
    program = b"".join(struct.pack("=HBBI", *instruction) for instruction in _DROP_SYN)
    held = ctypes.create_string_buffer(program)
    described = struct.pack("@HP", len(_DROP_SYN), ctypes.addressof(held))
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
