"""When a backend is given a rest, for how long, and how it comes back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meritorder.routing.health import Circuit, CircuitState

CLOSED, OPEN, HALF_OPEN = CircuitState


def failed(times: int, now: float = 0.0) -> Circuit:
    circuit = Circuit()
    for _ in range(times):
        circuit.failure(now)
    return circuit


def rest(circuit: Circuit, now: float) -> float:
    waited = circuit.retry_after(now)
    assert waited is not None
    return waited


class TestOpening:
    @pytest.mark.parametrize(("failures", "state"), [(0, CLOSED), (2, CLOSED), (3, OPEN)])
    def test_it_opens_after_three_failures_in_a_row(self, failures: int, state: CircuitState) -> None:
        assert failed(failures).state(0.0) is state

    def test_a_success_in_between_starts_the_count_again(self) -> None:
        circuit = failed(2)
        circuit.success(1.0)
        assert [circuit.failure(2.0), circuit.failure(3.0), circuit.failure(4.0)] == [False, False, True]

    def test_it_opens_at_once_for_what_the_next_request_would_meet_too(self) -> None:
        circuit = Circuit()
        assert circuit.failure(0.0, certain=True)
        assert circuit.closed_to(0.5) == "has failed and rests for 1.5 s more"

    def test_it_opens_when_half_of_the_latest_twenty_fail(self) -> None:
        circuit = Circuit()
        opened = []
        for number in range(20):
            if number % 2:
                opened.append(circuit.failure(number))
            else:
                circuit.success(number)
        assert opened == [False] * 9 + [True]

    def test_not_when_fewer_than_half_do(self) -> None:
        circuit = Circuit()
        for number in range(300):
            if number % 5 < 2:
                circuit.failure(number / 10)
            else:
                circuit.success(number / 10)
        assert circuit.state(30.0) is CLOSED

    def test_nor_for_failures_of_more_than_thirty_seconds_ago(self) -> None:
        circuit = Circuit()
        for number in range(18):
            circuit.failure(0.0) if number % 2 else circuit.success(0.0)
        circuit.success(40.0)
        circuit.failure(40.0)
        assert circuit.state(40.0) is CLOSED


class TestResting:
    def test_each_rest_is_twice_as_long_as_the_one_before_up_to_a_minute(self) -> None:
        circuit, now, rests = Circuit(), 0.0, []
        for _ in range(8):
            circuit.failure(now, certain=True)
            rests.append(rest(circuit, now))
            now += rests[-1]
        assert rests == [2, 4, 8, 16, 32, 60, 60, 60]

    def test_a_success_makes_the_next_rest_short_again(self) -> None:
        circuit = Circuit()
        circuit.failure(0.0, certain=True)
        circuit.failure(2.0, certain=True)
        assert circuit.success(6.0)
        circuit.failure(7.0, certain=True)
        assert rest(circuit, 7.0) == 2.0

    @pytest.mark.parametrize(("retry_after", "expected"), [(None, 2), (0.5, 2), (30.0, 30), (1e9, 3600), (-5.0, 2)])
    def test_it_rests_for_as_long_as_the_backend_asks(self, retry_after: float | None, expected: float) -> None:
        circuit = Circuit()
        circuit.failure(0.0, certain=True, retry_after=retry_after)
        assert rest(circuit, 0.0) == expected

    def test_what_fails_while_it_rests_makes_the_rest_no_longer(self) -> None:
        circuit = failed(3)
        for _ in range(50):
            assert not circuit.failure(1.0)
        assert rest(circuit, 1.0) == 1.0
        circuit.failure(2.0)
        assert rest(circuit, 2.0) == 4.0

    def test_a_stream_that_began_before_the_outage_says_nothing_when_it_ends(self) -> None:
        circuit = failed(3, now=10.0)
        assert not circuit.success(11.0, sent=5.0)
        assert circuit.state(11.0) is OPEN
        circuit.failure(12.5, sent=5.0)
        assert circuit.state(12.5) is HALF_OPEN

    def test_what_was_sent_before_it_closed_says_nothing_when_it_ends_afterwards(self) -> None:
        circuit = failed(3)
        circuit.try_probe(2.0)
        circuit.success(2.5, sent=2.0)
        assert not any(circuit.failure(3.0, sent=1.0, certain=True) for _ in range(5))
        assert circuit.state(3.0) is CLOSED
        circuit.failure(3.0, sent=2.5)
        circuit.failure(3.0, sent=2.5)
        circuit.success(3.0, sent=1.0)  # nor does it end a row of failures
        assert circuit.failure(3.0, sent=2.5)


class TestProbe:
    def test_one_request_is_let_through_and_the_others_wait_for_its_result(self) -> None:
        circuit = failed(3)
        assert circuit.state(2.0) is HALF_OPEN
        assert circuit.closed_to(2.0) is None
        assert [circuit.try_probe(2.0) for _ in range(3)] == [True, False, False]
        assert circuit.closed_to(2.0) == "has failed, and another request tries whether it is back"

    def test_its_success_closes(self) -> None:
        circuit = failed(3)
        circuit.try_probe(2.0)
        assert circuit.success(2.5, sent=2.0)
        assert circuit.state(2.5) is CLOSED
        assert [circuit.try_probe(2.5) for _ in range(3)] == [True] * 3

    def test_its_failure_opens_again_and_the_next_one_is_a_new_probe(self) -> None:
        circuit = failed(3)
        circuit.try_probe(2.0)
        circuit.failure(2.5, sent=2.0)
        assert circuit.state(6.0) is OPEN
        assert circuit.state(6.5) is HALF_OPEN
        assert circuit.try_probe(6.5)

    def test_one_that_is_given_up_makes_way_for_the_next(self) -> None:
        circuit = failed(3)
        circuit.try_probe(2.0)
        circuit.abandoned(sent=2.0)
        assert circuit.try_probe(2.1)

    def test_another_that_is_given_up_does_not(self) -> None:
        circuit = failed(3)
        circuit.try_probe(2.0)
        circuit.abandoned(sent=1.9)  # a last resort, or from before the outage
        assert not circuit.try_probe(2.1)

    def test_one_that_nobody_hears_of_again_does_so_in_the_end(self) -> None:
        circuit = failed(3)
        circuit.try_probe(2.0)
        assert [circuit.try_probe(now) for now in (100.0, 302.0)] == [False, True]

    def test_a_closed_circuit_and_a_last_resort_need_none(self) -> None:
        assert Circuit().try_probe(0.0)
        assert [failed(3).try_probe(1.0) for _ in range(2)] == [True, True]


_steps = st.lists(st.tuples(st.floats(0, 70), st.sampled_from(["ok", "failed", "certain", "probe", "left"])))


@given(_steps)
def test_it_always_comes_back(steps: list[tuple[float, str]]) -> None:
    circuit, now = Circuit(), 0.0
    for wait, what in steps:
        now += wait
        match what:
            case "ok":
                circuit.success(now)
                assert circuit.state(now) is CLOSED
            case "failed" | "certain":
                circuit.failure(now, certain=what == "certain")
            case "probe":
                circuit.try_probe(now)
            case _:
                circuit.abandoned(sent=now - wait)
    assert (circuit.retry_after(now) or 0) <= 60
    assert circuit.closed_to(now + 361) is None
    assert circuit.try_probe(now + 361)
