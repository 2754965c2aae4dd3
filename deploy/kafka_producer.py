"""Producers of kafka-python, made and ended so that no trouble of the cluster's costs us a core.

For the daemon's dead letters and handover, and for the server's prediction log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from deploy.kafka_config import KafkaConnection


def open_producer(connection: KafkaConnection, settings: Mapping[str, Any]) -> Any:
    """A producer; what the connection's ``options`` say goes before ``settings``.

    Raises KafkaError where no broker answers; OSError, ValueError, TypeError or AssertionError
    where the connection cannot be as it is configured.
    """
    from kafka import KafkaProducer

    producer = KafkaProducer(**{**settings, **connection.options_of(KafkaProducer)})
    # A partition that it once wrote to and that has no leader now, since its topic was deleted or
    # its broker is away, has its thread ask for news, which wakes that thread, which asks again.
    cluster = producer._metadata
    cluster.request_update = _once_at_a_time(cluster.request_update)
    return producer


def end_producer(producer: Any, seconds: float = 0.5) -> None:
    """Close a producer and end its thread, whatever it could not deliver by then."""
    from kafka.errors import KafkaError

    try:
        producer.close(timeout=seconds)
    except KafkaError:
        # With records under way it gives up before it has ended its thread.
        producer._sender.force_close()
        with suppress(KafkaError):
            producer.close(timeout=seconds)


def _once_at_a_time(ask: Callable[[], Any]) -> Callable[[], Any]:
    """``ask``, but for the promise of the last time where that is not kept yet."""
    promised: Any = None

    def asked() -> Any:
        nonlocal promised
        if promised is None or promised.is_done:
            promised = ask()
        return promised

    return asked
