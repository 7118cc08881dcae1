"""A head with a recipe of its own: fitted once a fold, without epochs, to all of its training slides.

What the recipe said of each training slide while that was held out, or, where the fold has a validation part, what the
head says of that part, is what the fold is calibrated on.
"""

import math

import numpy as np
import torch

from mil.cohort.cohort import Cohort
from mil.heads.bags import pack
from mil.heads.head import OwnRecipe, TrainingSlides
from mil.tasks.classification import Classification
from mil.training.config import TrainConfig
from mil.training.model import Epoch, Kept, Model
from tiling.jobs.errors import RequestError


def fit_at_once(head: OwnRecipe, cohort: Cohort, model: Model, config: TrainConfig) -> None:
    """Its history is one epoch with learning rate 0. RequestError when the loss is no longer a number."""
    fold, task = model.fold, cohort.task
    slides = TrainingSlides(
        features=tuple(cohort.features[i] for i in fold.train),
        labels=cohort.targets[fold.train],
        patient_ids=cohort.patient_ids[fold.train],
        slide_ids=cohort.bag_ids[fold.train],
        task=task,
    )
    rng = np.random.default_rng(np.random.SeedSequence((config.seed, fold.repeat, fold.fold)))
    head.eval()
    positive = cohort.positive if isinstance(task, Classification) else None
    fitted = head.fit(slides, positive, rng)
    if not math.isfinite(fitted.loss):
        raise RequestError(f"fold {fold.number + 1}: the loss of --head {config.head} is no longer a number")
    logits, judged = fitted.held_out, fold.train
    if len(fold.val):
        judged = fold.val
        with torch.no_grad():
            logits = torch.cat([head(pack([cohort.features[i].to(head.device)])).logits.double().cpu() for i in judged])
    answers, targets = task.answers(logits), cohort.targets[judged]
    criterion = task.judged_by(task.loss_terms(cohort.targets[fold.train]).double())
    val_loss = float(criterion(logits, torch.from_numpy(targets)).mean())
    model.history.append(Epoch(1, 0.0, fitted.loss, val_loss, task.score(answers, targets), val_loss))
    model.best = Kept({name: t.detach().cpu().clone() for name, t in head.state_dict().items()}, answers, judged)
