"""What a learning curve says, in plain words: rules over the losses by epoch, one verdict a fold and one for all.

`start` is a fold's first loss, of its own kind; the kept epoch is the one whose weights the checkpoint holds, not that
whose validation loss happens to be lowest. Losses are smoothed by a running median of five epochs where one epoch must
not decide. The first rule that fits gives the verdict:

    too short            fewer than 5 epochs
    unstable             losses jump: their mean distance to the running median is more than 10 % of the start, or
                         training ends above its start
    does not learn       the training loss falls by less than 10 % of its start
    overfits from the start
                         the training loss falls, but the validation loss of the kept epoch is not 5 % below its start
    overfits             after the kept epoch the validation loss rises by more than 10 % of its start
    stopped too early    the fold ran to its last epoch, kept one of the last tenth, and in the second half the
                         validation loss fell by more than 5 % of its start (with the learning rate going down,
                         curves end flat even where more epochs would help)
    fine                 none of these

All are shares of a start, so they hold for any loss. Overall, the verdict that most folds have; of equally frequent
ones, the one that stands first here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.pages.words import counted
from mil.run.tables import by_member, kept_epoch

Name = Literal[
    "too short",
    "unstable",
    "does not learn",
    "overfits from the start",
    "overfits",
    "stopped too early",
    "fine",
]
REMEDIES: dict[Name, str] = {
    "too short": "Fewer than five epochs say nothing; raise --epochs.",
    "unstable": "The losses jump from epoch to epoch, so the kept epoch may be a lucky one. Lower --learning-rate; "
    "with very few validation slides, raise --val-fraction.",
    "does not learn": "Even the training slides are not learned. If the training loss still falls at the end, raise "
    "--learning-rate or --epochs; if it is flat, the features may not show what the label says: try another encoder, "
    "another scale or another head.",
    "overfits from the start": "Training slides are learned by heart, and it does not help with the validation slides. "
    "More patients are the cure; until then compare with --head mean, and check that labels and slides belong "
    "together.",
    "overfits": "The validation loss rises again while training goes on. The epoch that was kept is the one where its "
    "mean was lowest; more patients, a higher --dropout or a smaller --embed-dim can make the result better.",
    "stopped too early": "The kept epoch is among the last, and much of the fall was late; raise --epochs.",
    "fine": "Training and validation loss fall and settle.",
}
_NAMES: tuple[Name, ...] = tuple(REMEDIES)
_WINDOW = 5


@dataclass(frozen=True)
class Verdict:
    """`said` is one sentence with the numbers behind it."""

    name: Name
    said: str


def judge_fold(history: pd.DataFrame, epochs: int) -> Verdict:
    """The verdict on one fold's history.csv, see mil.run.layout; `epochs` is the largest number that was allowed.

    Of a fold with several models it is the verdict on most of those that were trained epoch by epoch.
    """
    histories = by_member(history)
    in_epochs = [own for own in histories if len(own) > 1] or histories
    verdicts = [_judge_model(own, epochs) for own in in_epochs]
    if len(verdicts) == 1:
        return verdicts[0]
    name = judge_all(verdicts)
    said = [verdict.said for verdict in verdicts if verdict.name == name]
    return Verdict(name, f"{len(said)} of {len(verdicts)} models, the first with its {said[0]}")


def _judge_model(history: pd.DataFrame, epochs: int) -> Verdict:
    train, val = (history[name].to_numpy(np.float64) for name in ("train_loss", "val_loss"))
    if len(train) < _WINDOW:
        return Verdict("too short", f"only {counted(len(train), 'epoch')}")
    smooth_train, smooth_val = _smooth(train), _smooth(val)
    kept = kept_epoch(history)
    jumps = max(_jumps(train, smooth_train), _jumps(val, smooth_val))
    if jumps > 0.10 or smooth_train[-1] > train[0]:
        return Verdict("unstable", f"losses jump by {jumps:.0%} of their start, training {_from_to(train)}")
    if _fall(train[0], smooth_train.min()) < 0.10:
        return Verdict("does not learn", f"training loss {_from_to(train)}")
    if _fall(val[0], val[kept]) < 0.05:
        validation = f"validation loss from {val[0]:.3g} to {val[kept]:.3g} in epoch {kept + 1}, which was kept"
        return Verdict("overfits from the start", f"training loss {_from_to(train)}, {validation}")
    if smooth_val[-1] - val[kept] > 0.10 * abs(val[0]):
        rise = f"from {val[kept]:.3g} to {smooth_val[-1]:.3g}"
        return Verdict("overfits", f"after epoch {kept + 1}, which was kept, the validation loss rose {rise}")
    half, late = len(val) // 2, len(val) >= epochs and kept + 1 > 0.9 * epochs
    if late and smooth_val[half] - val[kept] > 0.05 * abs(val[0]):
        fell = f"from {smooth_val[half]:.3g} to {val[kept]:.3g}"
        return Verdict("stopped too early", f"validation loss fell {fell} in the second half of {epochs} epochs")
    return Verdict("fine", f"validation loss from {val[0]:.3g} to {val[kept]:.3g} in epoch {kept + 1} of {len(val)}")


def judge_all(verdicts: Sequence[Verdict]) -> Name:
    """The most frequent verdict, the more serious one of a tie."""
    names = [verdict.name for verdict in verdicts]
    return max(_NAMES, key=lambda name: (names.count(name), -_NAMES.index(name)))


def _smooth(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running median of five epochs, of three and more at the ends."""
    return pd.Series(losses).rolling(_WINDOW, center=True, min_periods=1).median().to_numpy()


def _jumps(losses: NDArray[np.float64], smooth: NDArray[np.float64]) -> float:
    return float(np.abs(losses - smooth).mean() / abs(losses[0])) if losses[0] else 0.0


def _fall(start: float, end: float) -> float:
    return (start - end) / abs(start) if start else 0.0


def _from_to(losses: NDArray[np.float64]) -> str:
    return f"from {losses[0]:.3g} to {losses[-1]:.3g}"
