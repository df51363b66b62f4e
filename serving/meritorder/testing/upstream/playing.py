"""One behaviour played on one exchange: the waits, the reply, and the way it goes wrong."""

from itertools import islice
from typing import assert_never

from meritorder.testing.upstream.behaviour import Behaviour, FailMode
from meritorder.testing.upstream.errors import ApiError
from meritorder.testing.upstream.exchange import Exchange
from meritorder.testing.upstream.playbook import Pacer
from meritorder.testing.upstream.rendering import DONE, MALFORMED
from meritorder.testing.upstream.replies import StreamedReply, WholeReply


async def play(exchange: Exchange, behaviour: Behaviour, pacer: Pacer, reply: WholeReply | StreamedReply) -> None:
    """Send the reply, as far as the behaviour lets it come.

    Raises:
        ApiError: the error that the script wants sent instead.
        ConnectionError: the client has gone.
    """
    exchange.add_headers(behaviour.headers)
    if behaviour.refuse_connection:
        exchange.refuse()
        return
    if behaviour.hang:
        await exchange.wait_for_disconnect()
    await pacer.wait(behaviour.ttft_ms)
    if behaviour.status != 200:
        raise _scripted_error(behaviour, behaviour.status)
    if isinstance(reply, StreamedReply):
        await _play_stream(exchange, behaviour, pacer, reply)
    else:
        await _play_whole(exchange, behaviour, pacer, reply)


async def _play_stream(exchange: Exchange, behaviour: Behaviour, pacer: Pacer, reply: StreamedReply) -> None:
    await exchange.open_stream()
    for tail in islice(reply.tails, behaviour.fail_after_chunks):
        if tail.new_token:
            await pacer.wait(behaviour.itl_ms)
        await exchange.send_event(reply.prefix + tail.data, tail.tokens)
    if behaviour.failure is None:
        await exchange.end_stream(DONE, completion_tokens=reply.counted.completion_tokens)
    else:
        await _fail_stream(exchange, behaviour, behaviour.failure)


async def _fail_stream(exchange: Exchange, behaviour: Behaviour, mode: FailMode) -> None:
    match mode:
        case "close":
            exchange.cut()
        case "error_event":
            error = _scripted_error(behaviour, 500).body()
            await exchange.end_stream(b"data: " + error + b"\n\n")
        case "malformed":
            await exchange.end_stream(MALFORMED)
        case "stall":
            await exchange.wait_for_disconnect()
        case _:
            assert_never(mode)


async def _play_whole(exchange: Exchange, behaviour: Behaviour, pacer: Pacer, reply: WholeReply) -> None:
    await pacer.wait(behaviour.itl_ms * max(0, reply.tokens - 1))
    match behaviour.failure:
        case None:
            await exchange.send_body(reply.body, reply.counted.completion_tokens)
        case "close":
            await exchange.send_part(reply.body)
            exchange.cut()
        case "error_event":
            raise _scripted_error(behaviour, 500)
        case "malformed":
            await exchange.send_malformed_body(MALFORMED)
        case "stall":
            await exchange.send_part(reply.body)
            await exchange.wait_for_disconnect()


def _scripted_error(behaviour: Behaviour, status: int) -> ApiError:
    """Return a behaviour's error; what the script leaves out follows from the status, as OpenAI has it."""
    error_type, code = "invalid_request_error", None
    if status == 429:
        error_type, code = "requests", "rate_limit_exceeded"
    elif status >= 500:
        error_type = "server_error"
    return ApiError(
        status,
        behaviour.error_message or f"This is a simulated error with status {status}.",
        error_type=behaviour.error_type or error_type,
        code=behaviour.error_code or code,
    )
