"""The phases of a round and the steps that lead from one to the next, as one table.

WAITING (for a quorum) -> OPEN (one exchange after the other) -> AGGREGATING -> WAITING for the next -> ... -> FINISHED
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class Phase(Enum):
    """The state of a round."""

    WAITING = "waiting"
    OPEN = "open"
    AGGREGATING = "aggregating"
    FINISHED = "finished"


class Step(Enum):
    """A step of a round. `RoundEngine.advance` decides the first six, and its caller carries them out."""

    OPENED = "opened"
    """Tell the cohort to begin the first exchange."""
    EXTENDED = "extended"
    """A quorum is missing: the deadline was extended."""
    NEXT_EXCHANGE = "moved to its next exchange"
    """Ask the remaining members for their answers in the exchange that is now open. Their earlier answers are in
    `Member.earlier`. Members that didn't answer have dropped out. A round of one exchange never takes this step."""
    CLOSED = "closed"
    """Aggregate the answers, if there are any, then call `committed`."""
    FAILED = "failed"
    """A quorum is missing: discard the answers, then call `committed`; the model stays unchanged."""
    ABANDONED = "abandoned"
    """No member answered: discard the round, which will be opened again."""
    RESUMED = "resumed"
    """The round was open when an earlier server ended; see `RoundEngine.reopen`."""
    COMMITTED = "committed"
    """The round is complete. The model now includes its result, if it has one."""
    FINISHED = "finished"
    """No round follows."""


class IllegalStepError(Exception):
    """A step that doesn't follow from the round's phase: a mistake in the code that drives the engine."""

    def __init__(self, phase: Phase, step: Step):
        super().__init__(f"a round that is {phase.value} can't be {step.value}")
        self.phase = phase
        self.step = step


TRANSITIONS: Mapping[Phase, Mapping[Step, Phase]] = {
    Phase.WAITING: {
        Step.OPENED: Phase.OPEN,
        Step.RESUMED: Phase.OPEN,
        Step.FINISHED: Phase.FINISHED,
    },
    Phase.OPEN: {
        Step.EXTENDED: Phase.OPEN,
        Step.NEXT_EXCHANGE: Phase.OPEN,
        Step.CLOSED: Phase.AGGREGATING,
        Step.FAILED: Phase.AGGREGATING,
        Step.ABANDONED: Phase.WAITING,
    },
    Phase.AGGREGATING: {
        Step.COMMITTED: Phase.WAITING,
    },
    Phase.FINISHED: {},
}
"""By phase and step, the next phase. Every other step is illegal."""


def phase_after(phase: Phase, step: Step) -> Phase:
    """Return the phase that a step leads to.

    Raises:
        IllegalStepError: the step doesn't follow from the phase.
    """
    if step not in TRANSITIONS[phase]:
        raise IllegalStepError(phase, step)
    return TRANSITIONS[phase][step]
