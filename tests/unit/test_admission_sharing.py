"""What is left is shared: what waits comes first, half stays for the next one, and the sum is never exceeded."""

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meritorder.admission.sharing import Ask, Claim, Row, share, share_rate

D = Decimal
NOTHING = Claim(
    reserved=D(0), settled=D(0), stored=D(0), all_stored=False, grants={}, wish=D(0), waiting=D(0), least=D(0),
    stuck=False, offer=D(0), quantum=D("0.01"),
)  # fmt: skip


def wishing(wish: str, **changes: object) -> Claim:
    return replace(NOTHING, wish=D(wish), **changes)  # type: ignore[arg-type]


def waiting_for(*amounts: str, **changes: object) -> Claim:
    each = [D(amount) for amount in amounts]
    return replace(NOTHING, wish=2 * sum(each), waiting=sum(each, D(0)), least=min(each), **changes)  # type: ignore[arg-type]


def held(amount: str, live: bool = True) -> Row:
    return Row(D(amount), 1.0, live)


@pytest.mark.parametrize(
    ("claim", "row", "limit", "others", "amount"),
    [
        pytest.param(wishing("2"), None, "100", "0", "2", id="a wish is granted while there is plenty"),
        pytest.param(wishing("8"), None, "10", "0", "5", id="a wish gets at most half of what is left"),
        pytest.param(wishing("8"), None, "10", "6", "2", id="what others have leased is not left"),
        pytest.param(wishing("8"), None, "10", "12", "0", id="a limit that was lowered leaves nothing"),
        pytest.param(waiting_for("8"), None, "10", "0", "8", id="a request that waits gets more than half"),
        pytest.param(waiting_for("8", "4", "3"), None, "10", "0", "10", id="what waits together gets all that is left"),
        pytest.param(waiting_for("12"), None, "10", "0", "10", id="a request that cannot be let in gets what there is"),
        pytest.param(
            waiting_for("12", stuck=True, offer=D(6), grants={1.0: D(6)}), held("6"), "10", "0", "0",
            id="and gives it back where that was of no use",
        ),
        pytest.param(
            waiting_for("9", stuck=True, offer=D(6), grants={1.0: D(6)}), held("6"), "10", "0", "9",
            id="unless it is enough by now",
        ),
        pytest.param(
            wishing("0", offer=D(4), grants={1.0: D(6)}), held("6"), "100", "0", "2", id="only what is offered is taken"
        ),
        pytest.param(
            wishing("0", reserved=D(3), offer=D(3), grants={1.0: D(6)}), held("6"), "100", "0", "3",
            id="what is reserved stays leased",
        ),
        pytest.param(
            wishing("0", settled=D(5), offer=D(1), grants={1.0: D(6)}), held("4"), "100", "0", "3",
            id="what is used and not yet stored stays leased",
        ),
        pytest.param(
            wishing("0", settled=D(5), offer=D(1), grants={1.0: D(6)}, all_stored=True), held("1"), "100", "0", "0",
            id="what is stored does not",
        ),
        pytest.param(
            wishing("0", reserved=D(3), grants={1.0: D(6)}), held("6", live=False), "10", "9", "1",
            id="an expired lease is void, and only what is left comes back",
        ),
    ],
)  # fmt: skip
def test_share(claim: Claim, row: Row | None, limit: str, others: str, amount: str) -> None:
    assert share(claim, row, D(limit), D(others)).amount == D(amount)


def test_several_who_are_busy_keep_the_same_part_and_leave_it_for_the_next() -> None:
    keeps = {name: D(0) for name in "abc"}
    for _ in range(20):
        for name in keeps:
            others = sum(keeps.values()) - keeps[name]
            claim = wishing("100", offer=keeps[name], grants={1.0: keeps[name]})
            keeps[name] = share(claim, Row(keeps[name], 1.0, True), D(100), others).amount
    assert all(D("24.9") < part < D("25.1") for part in keeps.values())


def test_an_exchange_that_may_not_have_been_committed_is_told_by_its_stamp() -> None:
    claim = wishing("0", settled=D(2), grants={1.0: D(5), 2.0: D(8)})
    before = share(claim, Row(D(4), 1.0, True), D(100), D(0))
    after = share(claim, Row(D(7), 2.0, True), D(100), D(0))
    assert (before.stored, before.granted) == (D(1), D(5))  # 1 of the 2 that are used is stored, in both cases
    assert (after.stored, after.granted) == (D(1), D(8))


amounts = st.decimals(min_value=0, max_value=20, places=3)


@given(
    reserved=amounts, settled=amounts, waiting=st.lists(amounts, max_size=4), wish=amounts, given=amounts, used=amounts,
    offered=amounts, live=st.booleans(), stuck=st.booleans(), limit=amounts, others=amounts,
)  # fmt: skip
def test_a_lease_grows_only_as_far_as_the_limit_allows_and_shrinks_at_most_by_the_offer(
    reserved: Decimal, settled: Decimal, waiting: list[Decimal], wish: Decimal, given: Decimal, used: Decimal,
    offered: Decimal, live: bool, stuck: bool, limit: Decimal, others: Decimal,
) -> None:  # fmt: skip
    row = Row(max(D(0), given - used), 1.0, live)
    total = sum(waiting, D(0))
    claim = replace(
        NOTHING, reserved=reserved, settled=settled, grants={1.0: given}, wish=wish + total, waiting=total,
        least=min(waiting, default=D(0)), stuck=stuck, offer=min(offered, row.amount),
    )  # fmt: skip
    outcome = share(claim, row, limit, others)
    held = row.amount if live else D(0)
    assert outcome.amount >= 0
    assert outcome.amount <= max(held, limit - others)
    assert outcome.amount >= held - claim.offer
    assert outcome.granted - outcome.stored == outcome.amount
    assert outcome.stored <= settled


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=20), st.integers(0, 60))
def test_all_slices_of_a_minute_are_no_more_than_its_limit(asks: list[tuple[int, int]], limit: int) -> None:
    granted = 0
    for extra, waiting in asks:
        more = share_rate(Ask(waiting + extra, waiting), limit, granted)
        assert more >= min(waiting, limit - granted)  # what waits is not refused while there is some
        granted += more
        assert granted <= limit


def test_a_minute_that_is_over_granted_because_its_limit_was_lowered_has_nothing_left() -> None:
    assert share_rate(Ask(5, 5), 10, 12) == 0
