"""One sentence from the tracebacks of Serve, Ray and vLLM.

Serve reports a failed constructor as a traceback inside a traceback; vLLM's own reason may be in neither, only
in what its processes printed. A person needs the last exception's message, without the frames.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

MAX_LENGTH = 400

LogsOf = Callable[[int], str]
"""What the worker process of that id printed, empty where it cannot be had."""

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_REPLICA_PID = re.compile(r"ray::\S+\(\).*?\(pid=(\d+)")
_EXCEPTION = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?([A-Za-z_]\w*(?:Error|Exception|Exit|Interrupt|Refusal)): (.*)$")
# `(Worker pid=15047) ERROR 11-22 11:51:22 [multiproc_executor.py:944] `
_ENGINE_LOG = re.compile(r"^(?:\([^)]*\) )?ERROR [\d-]+ [\d:]+ \[[^\]]*\] ?(.*)$")
# `1 validation error for ModelConfig\n  Value error, <what> [type=value_error, input_value=...]`
_PYDANTIC = re.compile(r"\d+ validation errors? for \w+\n(?:\S+\n)?\s+(?:Value error, )?(.*?)\s*\[type=", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[^.\d\s])\.\s+(?=[A-Z])")

# These only say that there is a reason elsewhere.
_NOT_A_REASON = ("Engine core initialization failed", "WorkerProc initialization failed", "Traceback (most recent")
_OWN_WORDS = ("Failed to create vLLM engine config: ",)


def explain(details: Mapping[str, Any], logs_of: LogsOf) -> str:
    """Why an application is not ready, from its part of `GET /api/serve/applications/`; empty when it just starts."""
    texts = [str(deployment.get("message") or "") for deployment in (details.get("deployments") or {}).values()]
    texts.append(str(details.get("message") or ""))
    for text in map(_plain, texts):
        if waits := _waits_for_resources(text):
            return waits
        if reason := _reason(text, logs_of):
            return reason
    return ""


def _reason(text: str, logs_of: LogsOf) -> str:
    found = _last(_exceptions(text))
    if found is None:
        return ""
    kind, message = found
    if message.startswith(_NOT_A_REASON):
        pid = _REPLICA_PID.search(text)
        inner = _last(_engine_exceptions(logs_of(int(pid.group(1))))) if pid else None
        if inner is None:
            return "vLLM's engine ended while it started; the log of its worker process says why"
        kind, message = inner
    return _sentence(kind, message)


def _exceptions(text: str) -> Iterator[tuple[str, str]]:
    """Kind and message of every exception at the start of a line, messages of several lines joined."""
    found: tuple[str, list[str]] | None = None
    for line in text.splitlines():
        if match := _EXCEPTION.match(line):
            if found:
                yield found[0], "\n".join(found[1])
            found = (match.group(1), [match.group(2)])
        elif found and line.strip():
            found[1].append(line)
    if found:
        yield found[0], "\n".join(found[1])


def _engine_exceptions(log: str) -> Iterator[tuple[str, str]]:
    lines = (match.group(1) for line in _plain(log).splitlines() if (match := _ENGINE_LOG.match(line)))
    for kind, message in (match.groups() for line in lines if (match := _EXCEPTION.match(line))):
        if not message.startswith(_NOT_A_REASON):
            yield kind, message


def _last(found: Iterator[tuple[str, str]]) -> tuple[str, str] | None:
    return next(iter(deque(found, maxlen=1)), None)


def _sentence(kind: str, message: str) -> str:
    for words in _OWN_WORDS:
        message = message.removeprefix(words)
    if match := _PYDANTIC.search(message):
        message = match.group(1)
    if kind == "OutOfMemoryError" or "can't allocate memory" in message or "No available memory" in message:
        message = f"out of memory: {message}"
    elif kind == "OutOfMemoryException":
        message = "out of memory: the operating system or Ray ended the replica"
    first = _SENTENCE_END.split(" ".join(message.split()), maxsplit=1)[0].rstrip(".")
    return first if len(first) <= MAX_LENGTH else first[: MAX_LENGTH - 1] + "…"


def _waits_for_resources(text: str) -> str:
    match = re.search(r"taken more than \d+s to be scheduled.*Resources required for each replica: (\[.*?\])", text)
    return f"waits until {match.group(1)} are free: other models hold them" if match else ""


def _plain(text: str) -> str:
    return _ANSI.sub("", text)
