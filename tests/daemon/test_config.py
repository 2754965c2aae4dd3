"""The configuration: every mistake has its line or its variable, and no secret gets out."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from daemon.config import Config, ConfigError, load_config
from daemon.config_text import reference, starter
from daemon.operating_config import load_operating
from daemon.policy_config import GateConfig, PolicyConfig
from daemon.stream_config import (
    FieldsConfig,
    FileLettersConfig,
    FileSourceConfig,
    KafkaSourceConfig,
    StdinSourceConfig,
)

ROOT = Path(__file__).resolve().parents[2]
KAFKA = """\
source:
  kind: kafka
  topic: events
  bootstrap_servers: localhost:9092
"""


def load(tmp_path: Path, text: str, **environ: str) -> Config:
    path = tmp_path / "driftd.yaml"
    path.write_text(text)
    return load_config(path, environ)


def problems(tmp_path: Path, text: str, **environ: str) -> list[str]:
    """All problems, as ``line:column: key: message`` or ``VARIABLE: key: message``."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, **environ)
    return [str(p).removeprefix(f"{tmp_path}/driftd.yaml:") for p in caught.value.problems]


def test_the_smallest_config_is_a_source(tmp_path: Path) -> None:
    config = load(tmp_path, KAFKA)
    assert isinstance(config.source, KafkaSourceConfig)
    assert config.source.bootstrap_servers == ("localhost:9092",)
    assert config.name == "model"
    assert config.http.port == 8081
    assert isinstance(config.dead_letters, FileLettersConfig)


# ------------------------------------------------------------------ what is wrong, and where


def test_a_typo_is_named_with_its_line_and_what_was_meant(tmp_path: Path) -> None:
    text = KAFKA + "  grup: shop\ngate:\n  alhpa: 0.1\n"
    assert problems(tmp_path, text) == [
        "5:3: source.grup: unknown key; did you mean 'group'?",
        "7:3: gate.alhpa: unknown key; did you mean 'alpha'?",
    ]


def test_every_problem_is_said_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    text = """\
name: my model
source:
  kind: kafka
  topik: events
events:
  max_labels: many
  max_labels: 3
  unknown_label: gros
gate: {alpha: 2, min_events: 1.5}
topic: x
polcy:
  rungs: [head]
"""
    assert problems(tmp_path, text) == [
        "1:1: name: must match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$', not 'my model'",
        "2:1: source.bootstrap_servers: is required: Brokers to ask first, as host:port; a list,"
        " or one text with commas.",
        "2:1: source.topic: is required: Topic to read; one event a record.",
        "4:3: source.topik: unknown key; did you mean 'topic'?",
        "6:3: events.max_labels: must be a whole number, not 'many'",
        "7:3: events.max_labels: key appears twice, first on line 6",
        "8:3: events.unknown_label: must be 'grow' or 'reject', not 'gros'; did you mean 'grow'?",
        "9:8: gate.alpha: must be less than 1, not 2",
        "9:18: gate.min_events: must be a whole number, not 1.5",
        "10:1: topic: unknown key; 'topic' belongs in section 'source'",
        "11:1: polcy: unknown key; did you mean 'policy'?",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("source: {kind: kafak}", "1:10: source.kind: must be one of file, kafka, stdin, not"
         " 'kafak'; did you mean 'kafka'?"),
        ("source: {topic: x}", "1:1: source.kind: must be one of file, kafka, stdin"),
        ("source: events", "1:1: source: must be a section, not 'events'"),
        ("- a\n- b", "1:1: must be a mapping of sections, as `driftd init` writes it"),
        ("source: {kind: stdin}\nmodel:\n  features:\n    - {name: a, kynd: numeric}\n",
         "4:17: model.features[0].kynd: unknown key; did you mean 'kind'?"),
        ("source: {kind: stdin}\nmodel: {labels: a}", "2:9: model.labels: must be a list, not 'a'"),
        ("source: {kind: stdin}\nlog: {level: warn}",
         "2:7: log.level: must be 'debug', 'info', 'warning' or 'error', not 'warn'; did you mean"
         " 'warning'?"),
        ("source: {kind: stdin}\nhttp: {port: 70000}",
         "2:8: http.port: must be less than or equal to 65535, not 70000"),
        ("source: {kind: stdin}\nhttp: {port:}",
         "2:8: http.port: must be a whole number, not empty"),
        ("source: {kind: stdin}\npolicy: {rungs: [head, recall]}",
         "2:1: policy: rungs must be in the ladder's order, each once: recall, online, head,"
         " partial, progressive, ia3, lora, adapter, prefix, prompt, full, student"),
        ("source: {kind: stdin}\npolicy: {rungs: [head, student]}",
         "2:1: policy: rungs may not name student: it repairs nothing, it makes the champion small."
         " Ask for it with driftd refresh --rung student"),
        ("source: {kind: stdin}\ngate: {min_events: 9, max_events: 8}",
         "2:1: gate: max_events (8) must be at least min_events (9)"),
        ("source: [1", "1:11: not valid YAML: expected ',' or ']', but got '<stream end>' (while"
         " parsing a flow sequence)"),
        ("a: b: c", "1:5: not valid YAML: mapping values are not allowed here"),
        ("name: \tx\n\ty: 1", "1:7: not valid YAML: found character '\\t' that cannot start any"
         " token (while scanning for the next token)"),
    ],
)  # fmt: skip
def test_one_mistake_each(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in problems(tmp_path, text)


def test_tags_run_nothing(tmp_path: Path) -> None:
    text = KAFKA + "name: !!python/object/apply:os.mkdir [owned]\nseed: !!int x\n"
    assert problems(tmp_path, text)[:2] == [
        "5:7: name: the tag tag:yaml.org,2002:python/object/apply:os.mkdir is not allowed: plain"
        " values only",
        "5:1: name: must be text, not empty",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("source: {kind: stdin}\ndead_letters: {kind: topic, topic: dead}",
         "2:1: dead_letters.connection: is needed, as the source is not Kafka"),
        (KAFKA + "dead_letters: {kind: topic, topic: events}",
         "5:29: dead_letters.topic: must not be the source's own topic"),
        (KAFKA + "events: {unknown_label: reject}",
         "5:10: events.unknown_label: 'reject' needs the known labels: list them in model.labels"),
        (KAFKA + "server: {port: 8081}", "http.port: 8081 is the inference server's port too"),
        (KAFKA + "model: {task: tabular, features: [{name: a}]}\nfields: {features: {b: c}}",
         "6:21: fields.features.b: is not a feature of the model (model.features)"),
        (KAFKA + "  security_protocol: SASL_SSL",
         "1:1: source: SASL_SSL needs sasl_mechanism and sasl_username"),
        (KAFKA + "  sasl_mechanism: PLAIN",
         "1:1: source: sasl_mechanism needs security_protocol SASL_SSL or SASL_PLAINTEXT"),
        (KAFKA + "  options: {enable_auto_commit: true}",
         "1:1: source: options may not set enable_auto_commit: driftd sets it itself"),
        (KAFKA + "  tls_key_file: key.pem",
         "1:1: source: tls_cert_file and tls_key_file belong together"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other(tmp_path: Path, text: str, expected: str) -> None:
    assert any(found.endswith(expected) for found in problems(tmp_path, text)), expected


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory; `driftd init` writes one"):
        load_config(tmp_path / "nothing.yaml", {})
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path, {})
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_config(tmp_path / "latin.yaml", {})


# ------------------------------------------------------------------ YAML without surprises


def test_scalars_mean_what_they_look_like(tmp_path: Path) -> None:
    text = """\
source: {kind: kafka, topic: on, group: 007, bootstrap_servers: "a:1, b:2"}
fields: {label: no, id: null, time: 2024-01-01}
gate: {alpha: 1e-3}
policy: {online_head: false}
"""
    config = load(tmp_path, text)
    assert isinstance(config.source, KafkaSourceConfig)
    assert (config.source.topic, config.source.group) == ("on", "007")
    assert config.source.bootstrap_servers == ("a:1", "b:2")
    assert (config.fields.label, config.fields.id, config.fields.time) == ("no", None, "2024-01-01")
    assert config.gate.alpha == 0.001
    assert config.policy.online_head is False


def test_sections_with_everything_commented_out_are_their_defaults(tmp_path: Path) -> None:
    text = KAFKA + "gate:\n  # alpha: 1\nlearn:\n  online:\n    # rate: 2\nmodel:\n"
    assert load(tmp_path, text).gate == GateConfig()


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    text = """\
source:
  <<: &cluster {bootstrap_servers: "k:9092", kind: kafka}
  topic: events
dead_letters: {kind: topic, topic: dead}
"""
    config = load(tmp_path, text)
    assert isinstance(config.source, KafkaSourceConfig)
    assert config.source.topic == "events"
    assert problems(tmp_path, text + "gate: &g {alpha: 0.1, again: *g}\n")


# ------------------------------------------------------------------ the environment


def test_variables_override_the_file(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        KAFKA,
        DRIFTD_SOURCE__TOPIC="other",
        DRIFTD_GATE__ALPHA="0.2",
        DRIFTD_POLICY__RUNGS="[head, full]",
        DRIFTD_SOURCE__OPTIONS__SESSION_TIMEOUT_MS="9000",
        DRIFTD_EVENTS__MAX_AGE_SECONDS="",
        DRIFTD_SOURCE__GROUP="0042",
        UNRELATED="x",
    )
    assert isinstance(config.source, KafkaSourceConfig)
    assert config.source.topic == "other"
    assert config.source.group == "0042"
    assert config.source.options == {"session_timeout_ms": 9000}
    assert config.gate.alpha == 0.2
    assert config.policy.rungs == ("head", "full")
    assert config.events.max_age_seconds is None


def test_a_variable_may_replace_a_whole_section(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        KAFKA,
        DRIFTD_SOURCE="{kind: file, path: a.jsonl}",
        DRIFTD_SOURCE__FOLLOW="true",
    )
    assert config.source == FileSourceConfig(kind="file", path=Path("a.jsonl"), follow=True)


def test_a_whole_config_may_come_from_the_environment(tmp_path: Path) -> None:
    config = load(tmp_path, "", DRIFTD_SOURCE__KIND="stdin", DRIFTD_NAME="7")
    assert isinstance(config.source, StdinSourceConfig)
    assert config.name == "7"


def test_problems_from_the_environment_name_the_variable(tmp_path: Path) -> None:
    text = KAFKA + "name: shop\n"
    variables = {
        "DRIFTD_GATE__ALPHA": "high",
        "DRIFTD_NAME__FIRST": "z",
        "DRIFTD_SORCE__TOPIC": "x",
        "DRIFTD_SOURCE__": "y",
        "DRIFTD_SOURCE__TOPICK": "y",
    }
    assert problems(tmp_path, text, **variables) == [
        "DRIFTD_GATE__ALPHA: gate.alpha: must be a number, not 'high'",
        "DRIFTD_NAME__FIRST: name.first: lies inside of something that is not a section",
        "DRIFTD_SORCE__TOPIC: sorce: unknown key; did you mean 'source'?",
        "DRIFTD_SOURCE__: source.: names no setting: DRIFTD_SECTION__KEY is the form",
        "DRIFTD_SOURCE__TOPICK: source.topick: unknown key; did you mean 'topic'?",
    ]


def test_kubernetes_service_variables_are_not_settings(tmp_path: Path) -> None:
    load(
        tmp_path,
        KAFKA,
        DRIFTD_PORT="tcp://10.0.0.1:8080",
        DRIFTD_PORT_8080_TCP="tcp://10.0.0.1:8080",
        DRIFTD_PORT_8080_TCP_ADDR="10.0.0.1",
        DRIFTD_SERVICE_HOST="10.0.0.1",
        DRIFTD_SERVICE_PORT_HTTP="8080",
        DRIFTD_SERVER_SERVICE_HOST="10.0.0.1",
        DRIFTD_SERVER_PORT_8080_TCP_PROTO="tcp",
        DRIFTD_CONFIG="elsewhere.yaml",
    )


# ------------------------------------------------------------------ secrets

SASL = KAFKA + "  security_protocol: SASL_SSL\n  sasl_mechanism: PLAIN\n  sasl_username: me\n"


@pytest.mark.parametrize("secret", ["hunter2", "a: b #c", "{x", "[y]", "'quoted'", "0123", "@%&"])
def test_a_password_is_taken_exactly_and_never_shown(tmp_path: Path, secret: str) -> None:
    config = load(tmp_path, SASL, DRIFTD_SOURCE__SASL_PASSWORD=secret)
    assert isinstance(config.source, KafkaSourceConfig)
    assert config.source.client_options()["sasl_plain_password"] == secret
    for shown in (repr(config), str(config), config.model_dump_json()):
        assert secret not in shown.replace("0123456789", "")


def test_a_password_from_a_mounted_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("hunter2\n")
    config = load(tmp_path, SASL + f"  sasl_password_file: {file}\n")
    assert isinstance(config.source, KafkaSourceConfig)
    assert config.source.client_options()["sasl_plain_password"] == "hunter2"


@pytest.mark.parametrize(
    "line",
    [
        "sasl_pasword: hunter2",
        "sasl_password: [hunter2]",
        "sasl_password: {hunter2: 1}",
        "sasl_password: hunter2\n  sasl_password_file: hunter2",
        "sasl_password: hunter2\n  sasl_password: hunter2",
        "sasl_password: !!int hunter2",
    ],
)
def test_no_problem_gives_a_secret_away(tmp_path: Path, line: str) -> None:
    assert "hunter2" not in "\n".join(problems(tmp_path, SASL + f"  {line}\n"))


def test_validation_errors_of_the_models_hide_their_input() -> None:
    with pytest.raises(ValidationError) as caught:
        KafkaSourceConfig.model_validate({"kind": "kafka", "sasl_password": ["hunter2"]})
    assert "hunter2" not in str(caught.value)


# ------------------------------------------------------------------ starter and reference


@pytest.mark.parametrize("task", ["text", "tabular"])
@pytest.mark.parametrize("source", ["kafka", "file", "stdin"])
def test_the_starter_loads_and_is_all_defaults(tmp_path: Path, task: Any, source: Any) -> None:
    text = starter(task, source)
    config = load(tmp_path, text)
    assert config.model.task == task
    assert config.source.kind == source
    assert max(map(len, text.splitlines())) <= 96
    expected = {
        name: field.get_default(call_default_factory=True, validated_data={})
        for name, field in Config.model_fields.items()
        if name not in ("model", "source")
    }
    assert {name: getattr(config, name) for name in expected} == expected


def test_every_comment_of_the_starter_is_a_valid_setting(tmp_path: Path) -> None:
    """Taking away each "# " gives a config that loads, apart from what needs a decision."""
    lines = []
    for line in starter("text", "kafka").splitlines():
        bare = line.lstrip()
        key = bare.removeprefix("# ").split(":")[0]
        if bare.startswith("# ") and key.replace("_", "").isalpha() and key.islower():
            lines.append(line.replace("# ", "", 1))
        elif not bare.startswith("#"):
            lines.append(line)
    everything = yaml.safe_load("\n".join(lines))
    assert everything["gate"]["alpha"] == 0.05
    assert everything["learn"]["training"]["lora_targets"] == ["query", "value"]
    config = load(tmp_path, "\n".join(lines))
    assert config == load(tmp_path, starter("text", "kafka"))


def test_every_setting_says_why() -> None:
    text = reference()
    assert "| `alpha` | number | `0.05` | Chance that the gate promotes" in text
    for line in text.splitlines():
        if line.startswith("| `"):
            assert not line.endswith("|  |"), f"no description: {line}"


def test_the_page_is_true_to_the_models() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    _, _, tail = page.partition("<!-- generated: python -m daemon.config_text -->\n")
    assert tail.strip() == reference().strip(), (
        "docs/configuration.md is out of date: replace what follows its marker with the output of"
        " `python -m daemon.config_text`"
    )


# ------------------------------------------------------------------ the operators' part of it


def test_operating_needs_no_other_section_to_be_right(tmp_path: Path) -> None:
    path = tmp_path / "driftd.yaml"
    path.write_text("source: {kind: nonsense}\nregistry: {path: here}\ngate: {alpha: x}\n")
    config = load_operating(path, {"DRIFTD_HTTP__PORT": "9", "DRIFTD_NONSENSE": "1"})
    assert (config.registry.path, config.http.port) == ("here", 9)
    path.write_text("registry: {pth: here}\n")
    with pytest.raises(ConfigError, match="pth: unknown key; did you mean 'path'"):
        load_operating(path, {})


def test_loading_a_config_imports_no_training_code(tmp_path: Path) -> None:
    path = tmp_path / "driftd.yaml"
    path.write_text(KAFKA)
    code = (
        "import sys\n"
        "from daemon.config import load_config\n"
        f"load_config({str(path)!r}, {{}})\n"
        "bad = {'torch', 'transformers', 'peft', 'kafka', 'river', 'onnx'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_config_sections_do_not_change_after_loading() -> None:
    with pytest.raises(ValidationError):
        PolicyConfig().min_labelled = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        FieldsConfig(labl="x")  # type: ignore[call-arg]
    assert FileSourceConfig(kind="file", path=Path("x")).follow is False
