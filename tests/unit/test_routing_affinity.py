"""Which backend has seen the beginning of a prompt."""

from hypothesis import given
from hypothesis import strategies as st

from meritorder.routing.affinity import PrefixIndex

NOW = 1000.0


def index(**seen: tuple[int, ...]) -> PrefixIndex:
    made = PrefixIndex()
    for backend, prefix in seen.items():
        made.remember(backend, prefix, NOW)
    return made


def test_the_longest_common_beginning_counts() -> None:
    made = index(a=(1, 2, 3, 4), b=(1, 2, 9))
    assert made.matches((1, 2, 3, 5), NOW) == {"a": 3, "b": 2}
    assert made.matches((7, 2, 3), NOW) == {}
    assert made.matches((), NOW) == {}
    assert (made.matched_blocks("a", (1, 2, 3, 4, 5, 6), NOW), made.matched_blocks("c", (1,), NOW)) == (4, 0)


def test_it_is_forgotten_five_minutes_after_its_last_use() -> None:
    made = index(a=(1, 2, 3))
    made.remember("a", (1, 2), NOW + 200)
    assert [made.matched_blocks("a", (1, 2, 3), now) for now in (NOW + 300, NOW + 301, NOW + 501)] == [3, 2, 0]


def test_the_ends_of_what_was_not_used_for_longest_go_first() -> None:
    made = PrefixIndex(most=5)
    made.remember("a", (1, 2, 3), NOW)
    made.remember("a", (7, 8, 9), NOW + 1)
    assert made.matched_blocks("a", (1, 2, 3), NOW) == 2
    made.remember("a", (1,), NOW + 2)
    made.remember("a", (11, 12), NOW + 3)
    assert (made.matched_blocks("a", (1, 2, 3), NOW), made.matched_blocks("a", (7, 8, 9), NOW)) == (1, 2)


_seen = st.lists(st.tuples(st.sampled_from("abc"), st.text("xy", max_size=6), st.floats(0, 200)), max_size=30)


@given(_seen, st.text("xy", max_size=6), st.integers(1, 40))
def test_it_never_promises_more_than_was_seen_and_keeps_its_bounds(
    seen: list[tuple[str, str, float]], prompt: str, most: int
) -> None:
    def hashes(text: str) -> tuple[int, ...]:
        return tuple(hash(text[:length]) for length in range(1, len(text) + 1))

    small, large, now = PrefixIndex(most), PrefixIndex(), 0.0
    expected: dict[str, int] = {}
    for backend, text, pause in seen:
        now += pause
        small.remember(backend, hashes(text), now)
        large.remember(backend, hashes(text), now)
    when = 0.0
    for backend, text, pause in seen:
        when += pause
        common = next((n for n in range(len(prompt), 0, -1) if text[:n] == prompt[:n] and n <= len(text)), 0)
        if common and now - when <= 300:
            expected[backend] = max(expected.get(backend, 0), common)
    assert large.matches(hashes(prompt), now) == expected
    assert len(small) <= most
    for backend, blocks in small.matches(hashes(prompt), now).items():
        assert blocks <= expected[backend]
