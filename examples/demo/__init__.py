"""The demo: a real text stream through a real broker into the daemon.

``newsgroups`` makes the stream, ``broker`` runs an embedded Kafka-protocol broker, ``replay`` sends
the events at a chosen pace.
"""
