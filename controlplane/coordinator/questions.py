"""Plans that take long are questions: asked in one event, answered in another, void if the instance has moved on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from schemas.operations import OperationState

if TYPE_CHECKING:
    from controlplane.coordinator.state import Question, State


def settled_questions(state: State) -> State:
    """``state`` without a question whose answer has come and is of no use: it was used, or nobody needs it any more.

    One that is still worked out stays, needed or not: a second would only wait behind it.
    """
    if state.answer is None or _needed(state, state.answer.question):
        return state
    return replace(state, question=None, answer=None)


def _needed(state: State, question: Question) -> bool:
    if state.record is None or state.record.committed.epoch != question.epoch or state.record.committed.missing:
        return False
    if question.cause:
        operation = state.operations.get(question.cause)
        return operation is not None and operation.state is OperationState.PENDING
    return not state.status.goal and any(state.view(view.rank).slow != view.slow for view in question.views)
