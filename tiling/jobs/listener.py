"""Who is told how a run over slides goes. A library function prints nothing: it tells its listener."""

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from tiling.jobs.outcomes import Outcome, Outcomes

OnOutcome: TypeAlias = Callable[[Outcome, int, int], None]  # (outcome, slides that have ended, slides in all)


class Listener:
    """Listens and shows nothing; warnings are Python's own. All is told in the thread that started the run."""

    @contextmanager
    def following(self, total: int) -> Iterator[Callable[[Outcome], None]]:
        """Yield what is called with each outcome of a run over `total` slides."""
        yield lambda outcome: None

    def ended(self, outcomes: Outcomes) -> None:
        """The run is over and its summary written; not called where it is broken off."""

    def say(self, text: str) -> None:
        """Something that is good to know."""

    def warn(self, text: str) -> None:
        """Something that is wrong or takes long, and stops nothing."""
        warnings.warn(text, stacklevel=3)

    def stage(self, name: str) -> "Listener":
        """The listener for another run that this one needs first."""
        return self


SILENT = Listener()


@dataclass(frozen=True)
class Callback(Listener):
    """Calls `on_outcome(outcome, done, total)` at each slide that ends."""

    on_outcome: OnOutcome | None = None

    @contextmanager
    def following(self, total: int) -> Iterator[Callable[[Outcome], None]]:
        done, tell = itertools.count(1), self.on_outcome
        yield lambda outcome: tell(outcome, next(done), total) if tell else None
