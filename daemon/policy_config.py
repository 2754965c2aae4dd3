"""The daemon's own settings: when to train, when to trust the result, when to take it back.

Every default of bootstrap, policy, gate, probation, trainer, checkpoint, HTTP and log stands here
once, with its reason, so that an operator can argue with a number without reading the loop. Shares
are fractions of 1; "points" are percentage points of accuracy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deploy.config import AccessConfig, TlsConfig

Trained = Literal[
    "head",
    "partial",
    "progressive",
    "ia3",
    "lora",
    "adapter",
    "prefix",
    "prompt",
    "full",
    "student",
]
Rung = Literal["recall", "online", Trained]
LADDER: tuple[Rung, ...] = get_args(Rung)
#: These put forward what is there already: they cannot leave a part of it out.
UNTRAINED: frozenset[Rung] = frozenset({"recall", "online"})


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True
    )


class BootstrapConfig(Section):
    """The first version, when the registry is still empty."""

    warmup_events: int = Field(
        default=1000,
        ge=1,
        description="Labelled events to gather before the first model is trained and served. Too"
        " few give a weak start; the drift reference is taken from the same events.",
    )
    strategy: Trained = Field(
        default="head",
        description="How the first version is trained. A head on a pretrained encoder is ready in"
        " seconds and is a fair start for every later rung.",
    )


class FollowConfig(Section):
    """Versions that follow what learns online, once it is proven better than the champion."""

    events: int = Field(
        default=32,
        ge=0,
        description="Labelled events from one version of such a run to the next, if its answers"
        " differ by then. On a stream that never rests each doubling costs one or two points. With"
        " 0 nothing follows, and each snapshot has a trial of its own.",
    )
    seconds: float = Field(
        default=60.0,
        ge=0,
        description="Seconds between two such versions at least, which bounds their number on a"
        " fast stream by 1,440 a day, and their cost by a percent of a core.",
    )


class PolicyConfig(Section):
    """Which repair is tried after an alarm, and how much repairing is allowed."""

    rungs: tuple[Rung, ...] = Field(
        default=("recall", "online", "head", "partial", "lora", "full"),
        min_length=1,
        description="The rungs of the ladder that may be used, cheapest first. Leave one out and"
        " the policy climbs past it. Those that are out by default repair no more than their"
        " neighbours, but may be asked for with `driftd refresh --rung`.",
    )
    online_head: bool = Field(
        default=True,
        description="Update the head in place with every labelled event. Costs under a"
        " millisecond an event and keeps up with slow drift between refreshes.",
    )
    follow: FollowConfig = Field(
        default_factory=FollowConfig, description="Keeping up with what learns online."
    )
    cooldown_events: int = Field(
        default=1000,
        ge=0,
        description="Events after an incident before the next alarm may open one, so that a repair"
        " is seen working before it is judged again; unless the last labels prove a damage.",
    )
    min_labelled: int = Field(
        default=100,
        ge=1,
        description="Labelled events since the alarm that a refresh needs; with fewer, the new"
        " regime is not yet in the data.",
    )
    min_labelled_by_rung: dict[Rung, int] = Field(
        default={"recall": 20, "partial": 300, "progressive": 300, "lora": 300, "full": 1000},
        description="Labelled events that a rung needs where `min_labelled` does not fit it: the"
        " more weights move, the more examples must hold them, and a recall moves none.",
    )
    min_damage_points: float = Field(
        default=2.0,
        ge=0,
        le=100,
        description="Points of accuracy that an alarm must have cost before training starts. Drift"
        " that does no damage is journalled and left alone.",
    )
    tolerance_points: float = Field(
        default=1.0,
        ge=0,
        le=100,
        description="Points below the accuracy before the drift at which the damage counts as"
        " repaired and the climb ends.",
    )
    refit_growth: float = Field(
        default=2.0,
        ge=0,
        description="Without an alarm, the head is refitted each time the events of the present"
        " regime have grown by this factor: a first repair rests on few. Costs seconds, and the"
        " gate decides; 0 switches it off.",
    )
    baseline_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of the labelled events, by a hash of their id, that the first version"
        " answers too, to see what the refreshes since are worth. Costs a second pass of these"
        " where the encoder is another by now; 0 switches it off.",
    )
    settle_events: int = Field(
        default=500,
        ge=0,
        description="Events after a promotion during which the climb rests and the new champion"
        " shows whether it repaired the damage; fewer where its labels prove that it has not.",
    )
    patience_events: int = Field(
        default=4000,
        ge=0,
        description="Events into a new regime during which a damage that no rung has repaired is"
        " tried again, each time the regime's events have doubled. What is damaged still after"
        " that is closed as unrepaired, and the monitors take it for the new normal.",
    )
    max_promotions_per_day: int = Field(
        default=24,
        ge=1,
        description="Promotions in any 24 hours. More than one an hour is a sign of flapping and"
        " wants a person. The versions of a run that follows the online head count as the one"
        " promotion with which it began.",
    )
    cpu_seconds_per_refresh: float = Field(
        default=600.0,
        gt=0,
        description="Processor seconds that one refresh may spend; a strategy that would need"
        " more stops early and hands in its best round.",
    )

    show_inputs: bool = Field(
        default=True,
        description="Write the first 120 characters of the inputs that show a drift best into the"
        " journal. Switch it off where inputs are personal.",
    )

    @model_validator(mode="after")
    def _in_order(self) -> PolicyConfig:
        places = [LADDER.index(rung) for rung in self.rungs]
        if places != sorted(set(places)):
            raise ValueError("rungs must be in the ladder's order, each once: " + ", ".join(LADDER))
        if "student" in self.rungs:
            raise ValueError(
                "rungs may not name student: it repairs nothing, it makes the champion small. Ask"
                " for it with driftd refresh --rung student"
            )
        return self


class CanaryConfig(Section):
    """Live traffic for a challenger that has passed the gate, before it is promoted."""

    steps: tuple[float, ...] = Field(
        default=(),
        description="Shares of the traffic in percent, such as [5, 25, 50, 100], one after the"
        " other. Empty: what passes the gate is promoted at once, and probation watches it.",
    )
    min_requests: int = Field(
        default=200,
        ge=1,
        description="Requests that the challenger answers on each step at least.",
    )
    max_requests: int = Field(
        default=100_000,
        ge=1,
        description="Requests after which a step that is still undecided sends it back.",
    )
    error_margin: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="How much more often than the champion's its requests may fail (share).",
    )
    slow_margin: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="How much more often than the champion's its requests may be slow (share).",
    )
    slow_seconds: float = Field(
        default=0.25, gt=0, description="From where on a server counts a request as slow."
    )

    @model_validator(mode="after")
    def _rising(self) -> CanaryConfig:
        if list(self.steps) != sorted(set(self.steps)) or any(
            not 0 < step <= 100 for step in self.steps
        ):
            raise ValueError("steps must rise, above 0 and up to 100 percent")
        if self.max_requests < self.min_requests:
            raise ValueError(
                f"max_requests ({self.max_requests}) must be at least min_requests"
                f" ({self.min_requests})"
            )
        return self


class GateConfig(Section):
    """The test that a challenger must pass before it serves."""

    alpha: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="Chance that the gate promotes a challenger that is no better. Lower asks for"
        " more events per decision.",
    )
    min_events: int = Field(
        default=50,
        ge=1,
        description="Held-out labelled events before the gate may decide at all.",
    )
    max_events: int = Field(
        default=2000,
        ge=1,
        description="Deadline: unseen labelled events after which a challenger that is not shown"
        " better is rejected and the champion goes on.",
    )
    minimal_gain: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="Points of accuracy that the challenger must gain over the champion. Raise it"
        " where a swap has a cost of its own.",
    )
    student_points: float = Field(
        default=2.0,
        gt=0,
        le=50,
        description="Points of accuracy that a student may lose against the champion that it is"
        " distilled from. Shown to lose less it is promoted, shown to lose more it is rejected. Two"
        " are what `policy.min_damage_points` calls damage. A MiniLM's student loses one to two,"
        " and near the limit no number of events decides: three let nearly every such one in.",
    )
    student_events: int = Field(
        default=10_000,
        ge=1,
        description="Deadline of a student in unseen labelled events. To show a small loss to be"
        " small takes more of them than to show a gain: some four thousand for one point within"
        " two. A drift ends the trial at once, so that no repair waits for it.",
    )
    class_floor: float = Field(
        default=10.0,
        ge=0,
        le=100,
        description="Points of recall that any single class may lose. Stops an average that"
        " improves by giving up a small class. 100 switches it off, as it does for the next ones.",
    )
    slices: tuple[str, ...] = Field(
        default=(),
        description="Features of a table whose values are looked at slice by slice: each"
        " category, or eighth of the numbers; empty: all features. Texts have no slices.",
    )
    slice_floor: float = Field(
        default=15.0,
        ge=0,
        le=100,
        description="Points of accuracy that any slice may lose. Slices are many and overlap, so"
        " they may swing more than a class.",
    )
    forgetting: float = Field(
        default=20.0,
        ge=0,
        le=100,
        description="Points of accuracy that may be lost on the anchor, `memory.anchor` events of"
        " the first training, beyond what is won on the stream. Wide, as an old regime can be"
        " recalled; not asked after a concept drift, which makes the anchor's labels wrong.",
    )
    calibration: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="How much larger than the champion's the calibration error may be (share of"
        " right answers against confidence, 0 to 1). 1 switches it off.",
    )
    negative_flips: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of events that the champion has right and the challenger wrong. Users"
        " feel these flips even when the average improves. 1 switches it off.",
    )
    latency_ratio: float = Field(
        default=1.3,
        gt=0,
        description="Time of a prediction against the champion's on the same events; above it the"
        " challenger is rejected.",
    )
    size_ratio: float = Field(
        default=0.3,
        gt=0,
        description="Size of the INT8 file against FP32. A quantised encoder lies near 0.25; more"
        " means that something was left unquantised. Files below 1 MiB, as of tables, are not"
        " judged by it.",
    )
    parity_points: float = Field(
        default=1.0,
        ge=0,
        le=100,
        description="Points of accuracy that INT8 may lose against the trained FP32 model.",
    )
    canary: CanaryConfig = Field(
        default_factory=CanaryConfig, description="Live traffic before the promotion."
    )

    @model_validator(mode="after")
    def _deadline_after_start(self) -> GateConfig:
        if self.max_events < self.min_events:
            raise ValueError(
                f"max_events ({self.max_events}) must be at least min_events ({self.min_events})"
            )
        return self


class GuardConfig(Section):
    """Labels that should not be learned are held back. Labellers: see `fields.labeller`."""

    confidence: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="How sure the champion must be for its agreement with the online head and the"
        " nearest neighbours to count as high.",
    )
    contradictions: float = Field(
        default=0.1,
        gt=0,
        lt=0.5,
        description="Share of the labels against high agreement that is taken for noise, whoever"
        " gives them. Clean streams have one to three percent.",
    )
    by_class: bool = Field(
        default=False,
        description="Watch each class too, for streams that do not say who labelled. Off, as a"
        " drift that creeps into one class looks like wrong labels until most have moved.",
    )
    flood_labels: int = Field(
        default=500,
        ge=50,
        description="Latest labels among which a burst of one labeller is looked for. What is"
        " usual is counted over ten times as many.",
    )
    flood_factor: float = Field(
        default=5.0,
        ge=1,
        description="How many times its usual share of the labels a labeller may give. A new one"
        " that brings a backlog is a burst: release it, if that is what it is.",
    )
    hold_events: int = Field(
        default=10_000,
        ge=1,
        description="Events after which a case that no operator has released is dropped, and its"
        " labels are never learned.",
    )
    hold_most: int = Field(
        default=2000,
        ge=1,
        description="Labelled events that are held for one case; of more, the newest.",
    )


class ProbationConfig(Section):
    """The watch over a version that was just promoted."""

    events: int = Field(
        default=20_000,
        ge=0,
        description="Labelled events after a promotion during which the old champion is scored"
        " beside the new one; it ends earlier once the new one is shown better. Two points lost"
        " are found within so many, where the two differ on up to a fifth of the events. 0"
        " switches the watch off.",
    )
    late_events: int = Field(
        default=20_000,
        ge=0,
        description="Events without a label whose prediction is remembered, so that a label that"
        " comes later counts for the version that answered.",
    )
    alpha: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="Chance of a rollback by mistake in one probation.",
    )


class TrainingJobConfig(Section):
    """Training as a Kubernetes Job instead of in the daemon's pod; the chart sets it."""

    enabled: bool = Field(
        default=False,
        description="Whether to: on nodes with a GPU for example. Threads, memory and priority are"
        " then the Job's own. Otherwise a process beside the daemon trains.",
    )
    template: Path = Field(
        default=Path("/etc/driftd/training-job.yaml"),
        description="Manifest of a Job, in YAML: image, resources and nodes are its own; name,"
        " command and deadline are set for each refresh. The chart's place for it.",
    )
    folder: Path = Field(
        default=Path("/var/lib/driftd-training/jobs"),
        description="Where jobs lie: on a volume that the Job's pods mount at the same path.",
    )
    rungs: tuple[Trained, ...] = Field(
        default=get_args(Trained)[1:],
        description="Rungs that go to a Job. A head takes seconds, less than a pod's start, and"
        " stays in the daemon's pod.",
    )


class TrainerConfig(Section):
    """Limits of the process that trains; consuming and serving never wait for it."""

    threads: int = Field(
        default=1,
        ge=1,
        description="Threads for training. One leaves the other cores to serving.",
    )
    memory_mb: int | None = Field(
        default=None,
        ge=256,
        description="Address space of the trainer in MiB, enforced by the kernel. Full"
        " fine-tuning of a MiniLM needs about 2000; empty means no limit.",
    )
    nice: int = Field(
        default=10,
        ge=0,
        le=19,
        description="Scheduling priority of the trainer: 0 equal to serving, 19 lowest.",
    )
    timeout_seconds: float = Field(
        default=3600.0,
        gt=0,
        description="Wall time after which a refresh is stopped and journalled as failed.",
    )
    job: TrainingJobConfig = Field(
        default_factory=TrainingJobConfig,
        description="Whether refreshes run as Kubernetes Jobs.",
    )


class CheckpointConfig(Section):
    """Where the daemon keeps its state together with the offsets that produced it."""

    path: Path = Field(
        default=Path("state"),
        description="Folder for checkpoints and for the trainer's files. Must survive a restart:"
        " with it every event is learned exactly once. With `store: registry` it need not.",
    )
    store: Literal["folder", "registry"] = Field(
        default="folder",
        description="Where checkpoints lie. `folder`: in `path`. `registry`: in the registry's"
        " store, so that with a bucket the daemon needs no disk that survives. Only what has"
        " changed is written: some MB each time, where a memory is full.",
    )
    name: str | None = Field(
        default=None,
        min_length=1,
        description="Whose checkpoints they are, in the registry's store. Empty:"
        " `source.instance_id`, or `daemon`. Of one name only one daemon runs.",
    )
    every_seconds: float = Field(
        default=10.0,
        gt=0,
        description="Longest time between checkpoints; what a crash has to read again.",
    )
    every_events: int = Field(
        default=5000,
        ge=1,
        description="Most events between checkpoints; whichever comes first.",
    )
    ledger: bool = Field(
        default=False,
        description="Note each event that was taken in, in `ledger.jsonl` beside the checkpoints:"
        " `[id, topic, partition, offset, fate]`. For audits; about 80 bytes an event,"
        " and never shortened, so it is off unless asked for.",
    )
    stop_seconds: float = Field(
        default=25.0,
        gt=0,
        description="Longest time from SIGTERM to the end: the turn under way, the trainer's end"
        " (5 s), dead letters, the last checkpoint. What is not done by then is left, and its"
        " events are read again. Below the grace of whatever stops it: 30 s as a rule.",
    )


class HttpConfig(Section):
    """The daemon's own pages: metrics, health, status, journal, and the operators' verbs."""

    host: str = Field(
        default="127.0.0.1",
        description="Address to bind. Loopback, so that nothing is open to a network before"
        " someone asks for it; a container sets 0.0.0.0.",
    )
    port: int = Field(
        default=8081,
        ge=0,
        le=65535,
        description="Port to bind, beside the server's 8080; 0 lets the system choose.",
    )
    stalled_seconds: float = Field(
        default=120.0,
        gt=0,
        description="Seconds without a turn of the loop after which `/health/live` says no. More"
        " than the slowest turn takes, with a batch through the model and a slow disk.",
    )
    access: AccessConfig = Field(
        default_factory=AccessConfig,
        description="Who may read, and who may give orders. Without `tokens` nobody may give"
        " orders over HTTP.",
    )
    tls: TlsConfig = Field(
        default_factory=TlsConfig, description="Encryption. Tokens should not travel without."
    )


class LogConfig(Section):
    """What the daemon writes to its standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least important lines to write. `info` is a line per decision."
    )
    format: Literal["text", "json"] = Field(
        default="text",
        description="`text` for people, `json` for log collectors: one object a line, with the"
        " champion's version and the offsets.",
    )
