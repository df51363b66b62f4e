"""Logs: JSON, one line each. A line has names, numbers and outcomes; never a key, a header value or a prompt.

The one thing in a log that a client chooses is the request's id, which is short and plain text.
"""

import json
import logging
import sys
import time
import traceback
from functools import lru_cache
from types import TracebackType

import msgspec

from meritorder.core.usage import UsageRecord

_requests = logging.getLogger("meritorder.requests")
_faults = logging.getLogger("meritorder.faults")


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON; `fields` given as `extra` join it.

    Of an exception it tells the type and the place. What a library's exception says may quote an address or a
    header; who logs one and knows better puts it into the message.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": f"{_second(int(record.created))}.{int(record.msecs):03d}Z",
            "level": _level(record.levelname),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__qualname__
            line["at"] = _frames(record.exc_info[2])
        try:
            return _encode(line).decode()
        except ValueError:  # a text that is none, as a path may be
            return json.dumps(line, default=str)


_encode = msgspec.json.Encoder(enc_hook=str).encode


@lru_cache(maxsize=1)
def _second(moment: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))


@lru_cache
def _level(name: str) -> str:
    return name.lower()


def configure(level: str = "INFO") -> None:
    """Send all logs of this process to standard error, as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # no line has them
    for name in ("watchfiles", "alembic"):  # they tell of each step, of which we tell the outcome
        logging.getLogger(name).setLevel(logging.WARNING)


def log_request(record: UsageRecord) -> None:
    """The one line of a request that has ended."""
    if not _requests.isEnabledFor(logging.INFO):
        return
    usage = record.usage
    fields = {
        "request_id": record.request_id,
        "team": record.team,
        "key_id": record.key_id,
        "route": record.route,
        "endpoint": record.endpoint,
        "arm": record.arm,
        "backend": record.backend,
        "attempts": record.attempts,
        "outcome": record.outcome,
        "status": record.status,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cost_usd": format(record.cost, "f"),
        "ttft": record.time_to_first_token,
        "duration": round(record.duration, 6),
    }
    # Made by hand: which of our lines it is need not be searched for on the stack.
    line = logging.LogRecord(_requests.name, logging.INFO, __file__, 0, "request", (), None)
    line.fields = fields
    _requests.handle(line)


def log_fault(request_id: str, error: Exception) -> None:
    """A fault of this program, met by one request."""
    _faults.error("a request met a fault", exc_info=error, extra={"fields": {"request_id": request_id}})


def _frames(trace: TracebackType | None) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)]
