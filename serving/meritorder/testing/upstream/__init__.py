"""A scriptable stand-in for a hosted provider: OpenAI's wire format, no model, faults on demand.

Everything it says is marked as simulated: the answers' text, `system_fingerprint`, `owned_by` in the list of
models, the ids, an `x-simulated: true` header on each response, and the line printed at the start.

    async with ScriptedUpstream(Script.always(Behaviour(ttft_ms=200, fail_after_chunks=3))) as up: ...

or `python -m meritorder.testing.upstream --port 0 --model gpt-sim --script faults.yaml`.

Deliberately absent: tool calls, logprobs, stop sequences and anything else that would need a model. The
fields that ask for them are accepted and ignored.
"""

from meritorder.testing.upstream.behaviour import Behaviour
from meritorder.testing.upstream.clock import Clock, FakeClock, SystemClock
from meritorder.testing.upstream.log import Outcome, ReceivedRequest, Served
from meritorder.testing.upstream.script import Rule, Script, ScriptError, load_script, parse_script
from meritorder.testing.upstream.server import ScriptedUpstream

__all__ = [
    "Behaviour",
    "Clock",
    "FakeClock",
    "Outcome",
    "ReceivedRequest",
    "Rule",
    "Script",
    "ScriptError",
    "ScriptedUpstream",
    "Served",
    "SystemClock",
    "load_script",
    "parse_script",
]
