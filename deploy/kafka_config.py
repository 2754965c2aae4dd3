"""How to reach a Kafka cluster: for the daemon's streams, and for the server's prediction log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

Scalar = str | int | float | bool

# Settings of the Kafka client that what is promised rests on; `options` may not touch them.
RESERVED_OPTIONS = frozenset(
    {
        "auto_offset_reset",
        "bootstrap_servers",
        "enable_auto_commit",
        "group_id",
        "group_instance_id",
        "isolation_level",
        "key_deserializer",
        "key_serializer",
        "sasl_mechanism",
        "sasl_plain_password",
        "sasl_plain_username",
        "security_protocol",
        "ssl_cafile",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_keyfile",
        "ssl_password",
        "value_deserializer",
        "value_serializer",
    }
)


def split_commas(value: Any) -> Any:
    """A list that is written as one text with commas, as in an environment variable."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


class KafkaConnection(BaseModel):
    """How to reach a Kafka cluster."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True
    )

    bootstrap_servers: Annotated[tuple[str, ...], BeforeValidator(split_commas)] = Field(
        min_length=1,
        description="Brokers to ask first, as host:port; a list, or one text with commas.",
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT",
        description="Encryption and login, by Kafka's own names. Use SASL_SSL or SSL outside of"
        " a trusted network.",
    )
    tls_ca_file: Path | None = Field(
        default=None,
        description="Certificate authority (PEM) that signed the brokers; empty: system's.",
    )
    tls_cert_file: Path | None = Field(
        default=None, description="Client certificate (PEM), where the brokers ask for one."
    )
    tls_key_file: Path | None = Field(
        default=None, description="Private key of the client certificate."
    )
    tls_key_password_file: Path | None = Field(
        default=None, description="File with the password of that key, if it has one."
    )
    tls_check_hostname: bool = Field(
        default=True, description="Whether a broker's certificate must carry its host name."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        default=None, description="Login method; needed with the SASL protocols."
    )
    sasl_username: str | None = Field(default=None, description="User name for the login.")
    sasl_password: SecretStr | None = Field(
        default=None,
        description="Password for the login. Better given by the environment or by"
        " `sasl_password_file` than written here; it is never printed.",
    )
    sasl_password_file: Path | None = Field(
        default=None, description="File that holds the password, such as a mounted secret."
    )
    options: dict[str, Scalar] = Field(
        default={},
        description="Further settings of the kafka-python client, by its names, for what this"
        " page does not cover; for instance `session_timeout_ms: 10000`.",
    )

    @model_validator(mode="after")
    def _login_complete(self) -> KafkaConnection:
        if self.security_protocol.startswith("SASL"):
            if self.sasl_mechanism is None or self.sasl_username is None:
                raise ValueError(f"{self.security_protocol} needs sasl_mechanism and sasl_username")
            if (self.sasl_password is None) == (self.sasl_password_file is None):
                raise ValueError("give either sasl_password or sasl_password_file")
        elif self.sasl_mechanism is not None:
            raise ValueError("sasl_mechanism needs security_protocol SASL_SSL or SASL_PLAINTEXT")
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file belong together")
        reserved = sorted(RESERVED_OPTIONS & self.options.keys())
        if reserved:
            raise ValueError(f"options may not set {', '.join(reserved)}: driftd sets it itself")
        return self

    def options_of(self, client: Any) -> dict[str, Any]:
        """`client_options`, less what that class of client does not know: `options` may hold it."""
        given, known = self.client_options(), client.DEFAULT_CONFIG
        return {name: value for name, value in given.items() if name in known}

    def client_options(self) -> dict[str, Any]:
        """Arguments for any kafka-python client. Raises OSError if the password file is away."""
        options: dict[str, Any] = {
            "bootstrap_servers": list(self.bootstrap_servers),
            "security_protocol": self.security_protocol,
            "reconnect_backoff_max_ms": 1000,  # the client's 30 s would outlast most restarts
        }
        if self.security_protocol.endswith("SSL"):
            options["ssl_check_hostname"] = self.tls_check_hostname
            for name, path in (
                ("ssl_cafile", self.tls_ca_file),
                ("ssl_certfile", self.tls_cert_file),
                ("ssl_keyfile", self.tls_key_file),
            ):
                if path is not None:
                    options[name] = str(path)
            if self.tls_key_password_file is not None:
                options["ssl_password"] = self.tls_key_password_file.read_text().strip()
        if self.sasl_mechanism is not None:
            options["sasl_mechanism"] = self.sasl_mechanism
            options["sasl_plain_username"] = self.sasl_username
            if self.sasl_password is not None:
                options["sasl_plain_password"] = self.sasl_password.get_secret_value()
            elif self.sasl_password_file is not None:
                options["sasl_plain_password"] = self.sasl_password_file.read_text().strip()
        return options | self.options
