"""The first questions to an endpoint: whether it answers, and in which way it wants to be asked.

Knows what counts as an answer; not how an endpoint came to be.
"""

from __future__ import annotations

from dataclasses import replace

from fmgauge.endpoints.kinds import kind_of
from fmgauge.errors import FmgaugeError
from fmgauge.load import ask_once
from fmgauge.records import Endpoint, RequestRecord
from fmgauge.wire import usage_is_optional

_QUESTIONS = 3
_FIELD_REFUSED = (400, 422)  # a server that refuses a field of a request says one of these


def asked(endpoint: Endpoint, timeout_s: float) -> Endpoint:
    """`endpoint` as it is after a few questions: ready, or failed with the reason.

    One answer is enough, also one whose only token bears no text (the first of a reasoning model,
    or half a character): how often it fails is for the load to find out. Where the server refuses
    the question, it is put once more without the field that some servers do not know; if that
    helps, every request is sent without it.
    """
    try:
        answering, answer = questioned(endpoint, timeout_s)
    except FmgaugeError as error:  # its key is not set, for one
        return replace(endpoint, state="failed", error=str(error))
    if answering is not None:
        return answering
    remedy = kind_of(endpoint).remedy(endpoint, answer)
    return replace(endpoint, state="failed", error=no_answer(answer) + remedy)


def questioned(endpoint: Endpoint, timeout_s: float) -> tuple[Endpoint | None, RequestRecord]:
    """The endpoint as it is to be asked, or None where no answer was one; and the last answer."""
    for _ in range(_QUESTIONS):
        answer = _answer(endpoint, timeout_s)
        if _is_answered(answer):
            return endpoint, answer
        if answer.http_status in _FIELD_REFUSED and usage_is_optional(endpoint):
            without_usage = replace(endpoint, usage_in_stream=False)
            if _is_answered(_answer(without_usage, timeout_s)):
                return without_usage, answer
            break  # it is the question that it refuses: to ask again would not help
        if answer.http_status is None or answer.status == "timeout":
            break  # to wait as long again would not help
    return None, answer


def no_answer(answer: RequestRecord) -> str:
    """Why `answer` is none."""
    return f"the first answer was no answer: {answer.status}: {answer.error}"


def _answer(endpoint: Endpoint, timeout_s: float) -> RequestRecord:
    return ask_once(kind_of(endpoint).first_question(endpoint), timeout_s=timeout_s)


def _is_answered(answer: RequestRecord) -> bool:
    return answer.status in ("ok", "empty")
