"""Settings of diagnose-cohort."""

from dataclasses import dataclass

from mil.tasks.registry import TASKS
from tiling.jobs.command import setting


@dataclass(frozen=True)
class DiagnoseConfig:
    """Each field is a flag and a key of configs/diagnose.yaml. Raises ValueError for impossible values."""

    task: str = setting("classification", f"what kind of target it is: {', '.join(TASKS)}; others are asked by strata")
    event: str = setting("", "for task survival: column that is 1 where the event was seen, 0 where it was not")
    entry: str = setting("", "for task survival: column that says when a patient came under observation, if not at 0")
    order: str = setting("", "for task ordinal: the grades from low to high, such as G1,G2,G3")
    positive: str = setting("", "positive class of a two-class target (default: the last in sorted order)")
    folds: int = setting(5, "folds of the cross-validation by patient behind every AUROC")
    bootstrap: int = setting(1000, "draws of the patient-level bootstrap behind each interval")
    permutations: int = setting(200, "shuffles of the labels behind each permutation p value")
    weights: str = setting(
        "default", "weights of the encoder of the features: default, or the .pth or .safetensors file that they name"
    )
    sample_patches: int = setting(1000, "patches that are embedded again, from all slides; the cost of --patches")
    seed: int = setting(0, "seed of folds, samples, shuffles and bootstrap")
    device: str = setting("auto", "auto, cpu, cuda or cuda:<index>")
    scheduler: str = setting("", "address of a Dask scheduler whose workers make the findings, one each at a time")

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task is {self.task!r}, expected one of {', '.join(TASKS)}")
        least = {"folds": 2, "bootstrap": 100, "permutations": 19, "sample_patches": 20, "seed": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {value}")
