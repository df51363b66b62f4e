"""The one thing that is added to a stream: in its usage event, what the request was and what it cost.

"usage": {"prompt_tokens": 9, ..., "meritorder": {"request_id": "req_1", "backend": "faq", "cost_usd": "0"}}
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from meritorder.wire.sse import data_of, event

FIELD = "meritorder"

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def annotated(usage_event: bytes, explanation: Mapping[str, Any]) -> bytes:
    """A stream's usage event with `explanation` in its usage; all other fields keep their bytes.

    An event of another shape is returned as it is.
    """
    try:
        fields = _decode(data_of(usage_event) or b"")
        usage = _decode(fields["usage"])
    except (msgspec.MsgspecError, KeyError):
        return usage_event
    return event(msgspec.json.encode({**fields, "usage": {**usage, FIELD: explanation}}))
