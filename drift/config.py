"""What an operator may set about drift, and why each default is what it is.

One knob matters: `false_alarm`, the budget that calibrates every detector. The rest are sizes and
effect floors. `Monitors` reads this; nothing else in the room holds a default.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from drift.budget import DEFAULT, FEWEST, PER_TIME

FeatureMeasure = Literal["ks", "psi", "wasserstein", "jensen_shannon"]
DetectorName = Literal[
    "error_rate",
    "embedding",
    "class_mix",
    "answers",
    "features",
    "mmd",
    "classifier",
    "reconstruction",
    "adwin",
    "ddm",
    "eddm",
    "hddm_a",
    "hddm_w",
    "page_hinkley",
    "kswin",
]


class DriftConfig(BaseModel):
    """The ``drift:`` section of the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    false_alarm: Annotated[int, Field(ge=FEWEST)] | Annotated[str, Field(pattern=PER_TIME)] = Field(
        default=DEFAULT,
        description="At most one false alarm per this many events, over all calibrated detectors "
        "together; or so many per time, as `1 per day` or `2 per week`, counted at the traffic of "
        "the reference. 20,000: at an event a second, about four false alarms a day at the very "
        "worst; a tenfold budget delays a detection by only about a quarter.",
    )
    detectors: tuple[DetectorName, ...] = Field(
        default=("error_rate", "features", "embedding", "class_mix"),
        min_length=1,
        description="Which detectors run. The four defaults cover P(y|x), P(x) and P(y); "
        "`features` runs where there is a table. `mmd`, `classifier` and `reconstruction` look at "
        "P(x) in other ways, `answers` sees label shift where labels come late; the others are "
        "river's, on the same errors as `error_rate`. All that run share the budget, so each more "
        "delays the rest a little.",
    )
    river_defaults: bool = Field(
        default=False,
        description="Run river's detectors exactly at river's own settings, outside of the budget. "
        "Off: each is calibrated to the budget at the reference's error rate.",
    )
    reference_events: int = Field(
        default=4_000,
        ge=50,
        description="How many events a reference keeps, the most recent ones. 4,000 know an error "
        "rate of 0.2 to within 0.6 points, and cost 6 MB a version at 384 dimensions.",
    )
    reference_minimum: int = Field(
        default=200,
        ge=50,
        description="With fewer usable events than this a detector does not run, and says so: "
        "nothing could be told from chance within a sensible budget.",
    )
    baseline_events: int = Field(
        default=50_000,
        ge=1_000,
        description="Until it rests on this many events, normal goes on being learned from the "
        "stream after the reference; then it stands still, so that no creeping change hides. "
        "50,000 know an error rate to within 0.2 points: error of the baseline no longer matters.",
    )
    error_floor: float = Field(
        default=0.03,
        gt=0,
        lt=0.5,
        description="The smallest rise of the error rate that is looked for. Rises below half of "
        "it never add up to an alarm. 0.03: three points of accuracy are worth a refresh.",
    )
    rebase_events: int = Field(
        default=1_000,
        ge=100,
        description="When the model has clearly improved, the next so many events make its new "
        "baseline, so that the better model is guarded too. 1,000 know it to about one point.",
    )
    mix_floor: float = Field(
        default=0.05,
        gt=0,
        lt=0.5,
        description="The smallest change of one class's share of the traffic that is looked for. "
        "0.05: less hardly moves a classifier's accuracy. A new class is looked for from 0.01 up.",
    )
    embedding_floor: float = Field(
        default=0.05,
        ge=0,
        description="Shifts of the mean embedding up to this many standard deviations raise no "
        "more alarms than none at all. Statisticians call 0.2 a small effect; 0.05 leaves room "
        "to show one soon: a new topic in 1 event of 20 shifts the mean by about 0.25.",
    )
    embedding_directions: int = Field(
        default=32,
        ge=1,
        le=256,
        description="How many principal directions of the reference are watched one by one; what "
        "lies outside of them is watched as one distance. 32 hold most of a text encoder's "
        "variance; more directions are more noise to wade through.",
    )
    embedding_window: int = Field(
        default=2_048,
        ge=32,
        le=65_536,
        description="The longest stretch of recent events compared with the reference (shorter "
        "ones, halving down to 32, are compared as well). 2,048 find a topic at 5 % of traffic.",
    )
    feature_measure: FeatureMeasure = Field(
        default="ks",
        description="How far a numeric column is from the reference's. `ks` needs no tuning and "
        "is not fooled by outliers; `wasserstein` finds shifts sooner where outliers matter; `psi` "
        "and `jensen_shannon` see any change of shape, and need more events for the shift of a "
        "smooth column. Categories: chi-square.",
    )
    feature_floor: float = Field(
        default=0.05,
        ge=0,
        description="Columns that differ by no more than if their mean had shifted by this many "
        "standard deviations raise no more alarms than none at all. 0.05, as `embedding_floor`: a "
        "difference of 0.02 between distribution functions, or 2.5 points of an even category.",
    )
    mmd_floor: float = Field(
        default=0.02,
        ge=0,
        description="Discrepancies up to this many standard deviations of an event, in the "
        "kernel's space, raise no more alarms than none at all. 0.02: about 2 % of the traffic "
        "gone to a place of its own.",
    )
    classifier_floor: float = Field(
        default=0.05,
        gt=0,
        lt=0.5,
        description="The smallest rise of the share of new events which the classifier calls "
        "recent that is looked for (half of them is chance). Half of it never adds up to an alarm. "
        "0.05: a shift of 0.13 standard deviations along the best direction.",
    )
    reconstruction_floor: float = Field(
        default=0.05,
        ge=0,
        description="Shifts of the mean log reconstruction error up to this many standard "
        "deviations raise no more alarms than none at all. 0.05, as `embedding_floor`.",
    )
    same_regime: float = Field(
        default=0.1,
        gt=0,
        description="Two regimes whose signatures are at most this far apart count as the same one "
        "come back. 300 events each of one text stream lie 0.01 to 0.06 apart; with one topic of "
        "five exchanged about 0.1, with all of them 0.2 and more.",
    )
