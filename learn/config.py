"""What an operator may set about models, memory and training, each default with its reason."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


HALF_LIVES = (2, 8, 32, 128)  # events; of the running means that `relative` compares with


class FeatureConfig(_Section):
    """One column of a table."""

    name: str = Field(min_length=1, description="The feature's name in the model.")
    kind: Literal["numeric", "boolean", "categorical", "hashed"] = Field(
        "numeric",
        description="What its values are; `hashed` are categories too many to list, such as "
        "customers: each becomes one of 1,024 by its hash.",
    )

    @property
    def named(self) -> bool:
        """Whether its values are names rather than numbers."""
        return self.kind in ("categorical", "hashed")


Scalar = bool | int | float | str | None
RiverModelName = Literal[
    "adaptive-random-forest",
    "hoeffding-adaptive-tree",
    "leveraging-bagging",
    "streaming-random-patches",
]


class RivalConfig(_Section):
    """A model that is asked beside the champion, for comparison. It never serves."""

    kind: Literal["river"] = Field(
        "river", description="Whose model it is: river's, which has no ONNX form."
    )
    model: RiverModelName = Field(description="Which of its models.")
    parameters: dict[str, Scalar] = Field(
        {}, description="Its parameters by river's names, such as `n_models: 30`."
    )

    @property
    def name(self) -> str:
        """What it is called in status and metrics."""
        given = ",".join(f"{key}={value}" for key, value in self.parameters.items())
        return f"{self.kind}:{self.model}" + (f"({given})" if given else "")


class RiverConfig(_Section):
    """The model behind ``table: river``. It has no ONNX form: who serves it needs river."""

    model: RiverModelName = Field("adaptive-random-forest", description="Which of river's models.")
    parameters: dict[str, Scalar] = Field(
        {}, description="Its parameters by river's names, such as `n_models: 30`."
    )
    events: int = Field(
        5000,
        ge=100,
        description="A version holds the events it learned, and learns them anew when opened, at a "
        "millisecond each. At twice this many, learning begins anew with the newest.",
    )


class ModelConfig(_Section):
    """The ``model:`` section: what is learned and on which base."""

    task: Literal["text", "tabular"] = Field(
        "text", description="Classify texts, or rows of a table."
    )
    target: Literal["class", "number"] = Field(
        "class",
        description="What is predicted of a row: one of several classes, or a number (regression; "
        "with `table: ensemble` or `river`).",
    )
    base: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2",
        min_length=1,
        description="Pretrained text encoder: a folder, `package:NAME` for one that an installed "
        "package carries, or a hub id. MiniLM: 22 M parameters, strong embeddings, serves on CPU.",
    )
    max_length: int = Field(
        128,
        ge=4,
        le=512,
        description="Tokens of a text that are read; the rest is cut off. Cost grows with it; 128 "
        "hold most messages, queries and the gist of an article.",
    )
    labels: tuple[str, ...] = Field(
        (),
        description="Known classes in the order of the output; empty: learned from the stream.",
    )
    features: tuple[FeatureConfig, ...] = Field(
        (),
        description="Columns of a table, in order, such as `[{name: amount, kind: numeric}]`. "
        "Empty: inferred from the first events, and kept from then on.",
    )
    infer_events: int = Field(
        300,
        ge=1,
        description="Labelled events from which undeclared features are inferred; 300 show nearly "
        "every column and most categories.",
    )
    table: Literal["ensemble", "network", "river"] = Field(
        "ensemble",
        description="Model of a table. ensemble: linear experts on random features, which learn "
        "online from the first event. network: a small residual network, trained by the ladder. "
        "river: one of river's, which learns online too but is not exported to ONNX.",
    )
    river: RiverConfig = Field(RiverConfig(), description="The model of `table: river`.")
    random_features: int = Field(
        256,
        ge=8,
        le=2048,
        description="Random features of the ensemble, for the event's own columns and again for "
        "all. 256 follow a thousand events' drift; time and memory grow with the square.",
    )
    relative: bool = Field(
        False,
        description="Add each number of a table against its running mean of late, as columns "
        "`name~2`, `~8`, `~32`, `~128` (half-lives in events). Off: who asks the server must then "
        "send them, or null.",
    )
    lagged_labels: int = Field(
        0,
        ge=0,
        le=16,
        description="Add the last labels that have arrived as columns `label~1`, `label~2`, ... "
        "Off: who asks the server must then send them, or null.",
    )
    dimension: int = Field(
        64,
        ge=2,
        le=1024,
        description="Width of the network's embedding; 64 suits tens of features.",
    )

    rivals: tuple[RivalConfig, ...] = Field(
        (),
        description="Models that learn beside the champion of a table, for comparison, such as "
        "`[{model: adaptive-random-forest}]`. None: each costs about a millisecond an event.",
    )

    @model_validator(mode="after")
    def _numbers_are_of_tables(self) -> ModelConfig:
        if self.number and (self.task != "tabular" or self.table == "network"):
            raise ValueError("target: number needs task: tabular and table: ensemble or river")
        if self.number and self.table == "river" and self.river.model == "leveraging-bagging":
            raise ValueError("river's leveraging-bagging does not predict numbers")
        if self.number and self.labels:
            raise ValueError("model.labels are classes: target: number has none")
        return self

    @model_validator(mode="after")
    def _rivals_are_for_tables(self) -> ModelConfig:
        if self.rivals and self.task != "tabular":
            raise ValueError("model.rivals are for task: tabular")
        if len({rival.name for rival in self.rivals}) != len(self.rivals):
            raise ValueError("model.rivals names a rival twice")
        return self

    @model_validator(mode="after")
    def _names_are_free(self) -> ModelConfig:
        names = [feature.name for feature in self.features]
        if len(set(names)) != len(names):
            raise ValueError("model.features names a feature twice")
        if taken := sorted({feature.name for feature in self.context} & set(names)):
            raise ValueError(f"model.features may not name {taken[0]}: driftd adds that column")
        return self

    @property
    def number(self) -> bool:
        """Whether a number is predicted, not a class."""
        return self.target == "number"

    @property
    def numbers(self) -> list[str]:
        """The names of the features that are numbers."""
        return [feature.name for feature in self.features if feature.kind == "numeric"]

    @property
    def context(self) -> list[FeatureConfig]:
        """The columns that tell of the stream's past (`learn.past`), in order."""
        pairs = [(name, h) for h in HALF_LIVES for name in self.numbers] if self.relative else []
        relative = [FeatureConfig(name=f"{name}~{h}", kind="numeric") for name, h in pairs]
        kind: Literal["numeric", "categorical"] = "numeric" if self.number else "categorical"
        lags = range(1, self.lagged_labels + 1)
        return relative + [FeatureConfig(name=f"label~{lag}", kind=kind) for lag in lags]

    @property
    def columns(self) -> list[FeatureConfig]:
        """All columns of the table that the model sees: the features, then the context."""
        return [*self.features, *self.context]


class MemoryConfig(_Section):
    """The ``memory:`` section: what is kept to learn from."""

    recent: int = Field(
        4000,
        ge=100,
        description="Newest labelled events kept in full. Enough to refit a head for tens of "
        "classes; at 384 dimensions about 10 MB with texts.",
    )
    replay: int = Field(
        2000,
        ge=0,
        description="Older events kept for replay, balanced over the classes, so that a refresh "
        "does not forget what is still true.",
    )
    anchor: int = Field(
        200,
        ge=0,
        description="Held-out events of the first training kept for good, balanced over the "
        "classes: what a challenger must not forget. Taken anew after a concept drift.",
    )
    max_bytes: int = Field(
        256 * 1024 * 1024,
        ge=1024 * 1024,
        description="Bound of the memory in bytes; long texts make it hold fewer events. The "
        "replay may take a quarter of it, the anchor a tenth, the newest events the rest.",
    )
    holdout: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Share of events, by hash of the id, that no training ever sees. They judge; "
        "a fifth gives a verdict within a few hundred events and costs little accuracy.",
    )


class OnlineConfig(_Section):
    """The head that learns with every batch."""

    rate: float = Field(
        1.0,
        gt=0,
        description="Step of softmax SGD on unit-norm embeddings. 1.0 follows a new regime within "
        "hundreds of events and loses under a point in a calm one.",
    )
    l2: float = Field(
        1e-5, ge=0, description="Shrinkage a step, so that stale evidence fades slowly."
    )


class TrainingConfig(_Section):
    """How rungs that move encoder weights train."""

    rounds: int = Field(3, ge=1, description="Most passes over the data; three suffice for text.")
    batch: int = Field(16, ge=1, description="Examples a step, grouped by length.")
    encoder_rate: float = Field(
        5e-5, gt=0, description="Peak learning rate of encoder weights (AdamW)."
    )
    lora_rate: float = Field(
        1e-3, gt=0, description="Peak learning rate of adapters, which start from zero."
    )
    head_rate: float = Field(5e-3, gt=0, description="Peak learning rate of the head.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decay.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps with a rising rate.")
    accumulate: int = Field(1, ge=1, description="Batches a step, where memory is short.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="`bf16` halves the digits of products in training, at the same accuracy; "
        "`auto` where the processor has instructions for it, which makes it 1.3 times as fast.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where encoders are trained; `auto` is a GPU where there is one."
    )
    clip: float = Field(1.0, gt=0, description="Largest gradient norm; larger ones are scaled.")
    top_layers: int = Field(2, ge=1, description="Encoder layers that `partial` unfreezes.")
    lora_rank: int = Field(8, ge=1, description="Rank of LoRA's update; 8 equals full here.")
    layer_decay: float = Field(
        2.6,
        ge=1,
        description="`progressive` divides a layer's rate by this to get the rate of the one "
        "below; 2.6 is from the paper (ULMFiT).",
    )
    frozen_mb: int = Field(
        512,
        ge=0,
        description="Memory for the output of frozen layers, which then run once and not in "
        "every round. Above it they run again; 0 always does.",
    )
    lora_targets: tuple[str, ...] = Field(
        ("query", "value"),
        min_length=1,
        description="Linear layers that LoRA adapts; all where none is named so, as in tables.",
    )
    ia3_rate: float = Field(
        5e-3, gt=0, description="Peak learning rate of IA3's factors, which start from one."
    )
    adapter_width: int = Field(
        48, ge=1, description="Width of bottleneck adapters; 48 is 1 % of a MiniLM's weights."
    )
    virtual_tokens: int = Field(
        20,
        ge=1,
        description="Length of a prefix or prompt. Each one costs time in every prediction.",
    )
    prompt_rate: float = Field(
        1e-2, gt=0, description="Peak learning rate of a prefix or a prompt."
    )
    distillation: float = Field(
        0.0,
        ge=0,
        description="Weight of staying near the parent's logits where the parent is right, "
        "against forgetting.",
    )
    contrastive: float = Field(
        0.0,
        ge=0,
        description="Weight of the supervised contrastive loss, which draws examples of a class "
        "together; meant for few labels.",
    )
    class_focus: float = Field(
        0.0,
        ge=0,
        description="How much more often a class is drawn that is always wrong in validation; 1 "
        "doubles it, 0 draws every example once a round.",
    )
    minimal_gain: float = Field(
        0.5,
        ge=0,
        description="Points of validation accuracy that a round must gain, or training stops.",
    )
    max_update_ratio: float = Field(
        0.1,
        gt=0,
        description="Size of a step against that of the weights; above it training has diverged.",
    )
    max_gap: float = Field(
        0.2,
        gt=0,
        description="Validation loss minus training loss; above it while the validation loss "
        "rises, training stops as overfitting.",
    )


class StudentConfig(_Section):
    """The ``student`` rung: a small encoder distilled from the champion's."""

    share: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Parameters of the student's encoder against the champion's, at most: it is as "
        "wide as that allows. A tenth of MiniLM's 22.7 M is 64 wide, nearly all of it words.",
    )
    blocks: int = Field(
        1,
        ge=1,
        description="Transformer blocks over the table of words. A second one costs time in every "
        "prediction and gains nothing on short texts.",
    )
    rounds: int = Field(
        10,
        ge=1,
        description="Passes over the texts; the best one is kept. One takes some 4 CPU-seconds for "
        "10,000 short texts, and more than ten gain nothing.",
    )
    batch: int = Field(64, ge=1, description="Texts a step, grouped by length.")
    rate: float = Field(
        3e-3, gt=0, description="Peak learning rate (AdamW); high, as little is pretrained."
    )
    texts: int = Field(
        10_000,
        ge=0,
        description="Texts to match: where examples are fewer, changed copies of them make up for "
        "it, and the champion says what to make of these, at 5 ms each. At most half of "
        "`policy.cpu_seconds_per_refresh` goes into that.",
    )
    closeness: float = Field(
        10.0,
        ge=0,
        description="Weight of the cosine to the champion's embeddings, beside its logits and the "
        "labels, which count 1 each.",
    )


class CurationConfig(_Section):
    """What is done to the examples of a refresh before it trains."""

    duplicates: bool = Field(
        True,
        description="Merge examples of the same input and label; the one that stays has the "
        "weight of all, so nothing is lost but time.",
    )
    near_duplicates: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Cosine of embeddings from which an example is left out beside another of "
        "its class, 0.98 for paraphrases; 0 keeps all.",
    )
    noise: Literal["off", "ratio", "confident", "threshold"] = Field(
        "off",
        description="Leave out labels that look wrong to a head that has not seen them: where "
        "another class is `noise_ratio` times as likely, by confident learning, or where it is "
        "surer than `noise_threshold` of another class. With many classes `ratio` wins back most.",
    )
    noise_ratio: float = Field(
        10.0,
        ge=1,
        description="Likelihood ratio for `noise: ratio`; lower it where classes are few.",
    )
    noise_threshold: float = Field(
        0.9, gt=0, le=1, description="Probability of another class for `noise: threshold`."
    )
    folds: int = Field(5, ge=2, description="Parts by which unseen examples are judged.")
    tiers: tuple[float, ...] = Field(
        (),
        description="Shares of easy, medium and hard examples, such as [0.6, 0.3, 0.1]; empty "
        "trains on all.",
    )
    augment: int = Field(
        0,
        ge=0,
        description="Changed copies of each text of a class that has few: words swapped, left "
        "out, or taken from other texts of the class.",
    )
    augment_below: int = Field(
        20, ge=1, description="Examples of a class below which its texts are augmented."
    )

    @model_validator(mode="after")
    def _shares_of_tiers(self) -> CurationConfig:
        if self.tiers and (min(self.tiers) < 0 or abs(sum(self.tiers) - 1) > 1e-6):
            raise ValueError("learn.curation.tiers are shares: not negative, and 1 together")
        return self


class LearnConfig(_Section):
    """The ``learn:`` section."""

    l2: float = Field(
        0.1,
        ge=0,
        description="Prior of the head refit, in examples: large enough to keep few labels calm.",
    )
    replay: int = Field(
        500, ge=0, description="Replayed older events in a refresh, beside the recent ones."
    )
    replay_weight: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Weight of a replayed event. A tenth keeps the old regimes in mind; at full "
        "weight they would slow the repair by ten points in its first hundred events.",
    )
    hold: float = Field(
        3.0,
        ge=0,
        description="How firmly a head refit holds the weights of classes of which nothing new "
        "came, in examples. CLINC150's domains one by one: forgetting falls from 4 points to 2.",
    )
    new_class_min: int = Field(
        5, ge=1, description="Examples of a new label before the model grows a class for it."
    )
    online: OnlineConfig = Field(OnlineConfig(), description="The online head.")
    training: TrainingConfig = Field(TrainingConfig(), description="Encoder training.")
    student: StudentConfig = Field(StudentConfig(), description="Distillation of a small encoder.")
    curation: CurationConfig = Field(CurationConfig(), description="Cleaning of examples.")
