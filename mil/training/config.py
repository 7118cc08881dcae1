"""Settings of train-mil. The defaults are meant for cohorts of 30 slides and of 3,000 alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mil.cohort.split_plan import BAGS, SplitPlan
from mil.heads.registry import AUTO, HEADS
from mil.tasks.registry import TASKS
from tiling.jobs.command import setting

TRACKERS = ("wandb",)
MEMORIES = ("auto", "ram", "mapped")
PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `train-mil`; each field is a flag and a key of configs/train.yaml."""

    head: str = setting("gated-abmil", f"model on top of the patch features: {', '.join(HEADS)}, or {AUTO}, several")
    folds: int = setting(5, "folds of the cross-validation, by patient (unless the table has a split column)")
    repeats: int = setting(1, "how often the cross-validation is repeated with another shuffle")
    split: str = setting("patient", "what no test fold shares with training: patient, or site (column 'site') as well")
    splits: str = setting(
        "", "CSV of your own splits (slide_id, split, repeat, fold), such as another run's splits.csv"
    )
    inner_folds: int | Literal["auto"] = setting(
        "auto", "models a fold, each stopped on another part of its patients; auto: 5, for a large cohort 0 (one model)"
    )
    val_fraction: float = setting(0.25, "part of the non-test patients that stops the one model; 0: all epochs, 0.5")
    epochs: int = setting(100, "largest number of passes over the training slides")
    patience: int = setting(30, "epochs without a lower mean validation loss after which a fold stops")
    batch_slides: int = setting(8, "slides per optimiser step")
    parallel_models: int = setting(0, "models trained at the same time, with the same result; 0: what is fastest")
    precision: str = setting("auto", "auto, fp32 or bf16; auto: bf16 for large bags where the machine has it")
    learning_rate: float = setting(1e-3, "largest learning rate, reached after the warm-up (AdamW)")
    weight_decay: float = setting(1e-2, "decoupled weight decay (AdamW)")
    gradient_clip: float = setting(1.0, "largest norm of a gradient")
    loss: str = setting(
        "auto",
        "of training; auto: the first of the task's own. Classes: cross-entropy, focal, generalised-cross-entropy; "
        "numbers: huber, squared; times: full-likelihood, discrete-time; grades have one",
    )
    label_smoothing: float = setting(0.0, "part of each label that is spread over all classes, 0 to below 1")
    embed_dim: int = setting(128, "width of the layer that embeds a patch feature")
    attention_dim: int = setting(64, "width of the attention layer")
    dropout: float = setting(0.25, "part of the inputs and of the embedding dropped in training, 0 to below 1")
    feature_limit: float = setting(8.0, "standard deviations from the mean to which features are limited; 0: none")
    instance_dropout: float = setting(0.0, "part of a slide's patches left out in each epoch of training, 0 to below 1")
    bag: str = setting("slide", "what has one label and is one bag: slide, or patient (all slides of a patient)")
    task: str = setting("classification", f"what kind of target is learnt: {', '.join(TASKS)}")
    positive: str = setting(
        "", "positive class of a two-class target (default: the last in sorted order); of several: er=1,her2=yes"
    )
    event: str = setting(
        "", "for --task survival: column that is 1 where the event was seen at the end of the time, 0 where it was not"
    )
    entry: str = setting(
        "", "for --task survival: column that says when a patient came under observation (default: all at 0)"
    )
    order: str = setting("", "for --task ordinal: the grades from low to high, such as G1,G2,G3")
    covariates: str = setting(
        "", "columns of the table that models are told of beside the slide, such as age,sex,stage"
    )
    bootstrap: int = setting(2000, "draws of the patient-level bootstrap behind each interval")
    seed: int = setting(0, "seed of splits, weights, shuffling and bootstrap")
    track: str = setting("", f"send losses and metrics to {' or '.join(TRACKERS)} as well (TensorBoard is always on)")
    memory: str = setting("auto", "where features lie: ram, mapped (in a scratch file), or auto: ram up to half of it")
    scratch: str = setting("", "folder of that scratch file, which has no name there (default: where --out lies)")
    stage: str = setting("", "folder on a local disk for copies of features that lie in an object store; kept")
    device: str = setting("auto", "auto, cpu, cuda or cuda:<index>")
    scheduler: str = setting("", "address of a Dask scheduler whose workers train the models, to the same bytes")
    overwrite: bool = setting(False, "replace an existing run in --out")
    compare: str = setting("", "run on the same slides to compare the AUROC, or the task's own first figure, with")
    patches: str = setting(
        "", "folder of patch stores, for pictures in the report (default: 'patches' beside features)"
    )

    def loss_of(self, losses: Sequence[str]) -> str:
        """The loss, of those that a task has. ValueError for another."""
        if self.loss == "auto":
            return losses[0]
        if self.loss not in losses:
            raise ValueError(f"--loss is {self.loss!r}, expected one of {', '.join(losses)}")
        return self.loss

    def covariate_names(self) -> tuple[str, ...]:
        return tuple(filter(None, (name.strip() for name in self.covariates.split(","))))

    def split_plan(self) -> SplitPlan:
        return SplitPlan(
            self.folds, self.repeats, self.split, self.splits, self.val_fraction, self.seed, self.inner_folds
        )

    def __post_init__(self) -> None:
        if self.head not in (*HEADS, AUTO):
            raise ValueError(f"--head is {self.head!r}, expected one of {', '.join(HEADS)}, {AUTO}")
        if self.split not in ("patient", "site"):
            raise ValueError(f"--split is {self.split!r}, expected patient or site")
        if self.bag not in BAGS:
            raise ValueError(f"--bag is {self.bag!r}, expected {' or '.join(BAGS)}")
        if self.splits and self.split != "patient":
            raise ValueError("--splits names a file and --split asks for another way; give one of them")
        if self.track and self.track not in TRACKERS:
            raise ValueError(f"--track is {self.track!r}, expected {' or '.join(TRACKERS)}, or nothing")
        if self.task not in TASKS:
            raise ValueError(f"--task is {self.task!r}, expected one of {', '.join(TASKS)}")
        if bool(self.event) != (self.task == "survival"):
            raise ValueError(
                "--event COLUMN goes with --task survival, and only with it: 1 where the event was seen, 0 where not"
            )
        if self.entry and self.task != "survival":
            raise ValueError("--entry COLUMN goes with --task survival alone")
        if bool(self.order) != (self.task == "ordinal"):
            raise ValueError("--order G1,G2,G3 goes with --task ordinal, and only with it: the grades from low to high")
        if len(set(self.covariate_names())) < len(self.covariate_names()):
            raise ValueError(f"--covariates is {self.covariates!r}, expected each column once")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"--label-smoothing is {self.label_smoothing}, expected 0 to below 1")
        if self.memory not in MEMORIES:
            raise ValueError(f"--memory is {self.memory!r}, expected one of {', '.join(MEMORIES)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"--precision is {self.precision!r}, expected one of {', '.join(PRECISIONS)}")
        _at_least("folds", self.folds, 2)
        for name in ("repeats", "epochs", "patience", "batch_slides", "embed_dim", "attention_dim"):
            _at_least(name, getattr(self, name), 1)
        _at_least("bootstrap", self.bootstrap, 100)
        if self.inner_folds != "auto":
            _at_least("inner_folds", self.inner_folds, 0)
        _at_least("parallel_models", self.parallel_models, 0)
        _at_least("seed", self.seed, 0)
        for name in ("weight_decay", "feature_limit"):
            _at_least(name, getattr(self, name), 0)
        for name in ("learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{_flag(name)} is {getattr(self, name)}, expected more than 0")
        for name in ("dropout", "instance_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{_flag(name)} is {getattr(self, name)}, expected 0 to below 1")
        if not 0 <= self.val_fraction <= 0.5:
            raise ValueError(f"--val-fraction is {self.val_fraction}, expected 0 to 0.5")


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ValueError(f"{_flag(name)} is {value}, expected at least {least}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
