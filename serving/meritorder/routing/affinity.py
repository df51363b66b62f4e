"""Where the beginning of a prompt has been before, and so is likely to be in a cache still."""

from collections import OrderedDict

_LIFETIME_SECONDS = 300.0
"""How long hosted caches live at least after their last use.
Source: https://platform.openai.com/docs/guides/prompt-caching (5 to 10 minutes),
https://docs.claude.com/en/docs/build-with-claude/prompt-caching (5 minutes)"""

_NOBODY: dict[str, float] = {}

_MOST_ENTRIES = 50_000
"""Some tens of megabytes."""


class PrefixIndex:
    """The hashes of prompts' beginnings, with the backends that saw each and when; the longest unseen go first."""

    __slots__ = ("_entries", "_most")

    def __init__(self, most: int = _MOST_ENTRIES) -> None:
        self._entries: OrderedDict[int, dict[str, float]] = OrderedDict()
        self._most = most

    def __len__(self) -> int:
        return len(self._entries)

    def remember(self, backend: str, prefix: tuple[int, ...], now: float) -> None:
        """`backend` has been given a prompt that begins with `prefix`, as in `InferenceRequest`."""
        entries = self._entries
        # The longest first, so that the shorter ones, without which it is not found, are forgotten after it.
        for block in reversed(prefix):
            seen = entries.get(block)
            if seen is None:
                entries[block] = {backend: now}
            else:
                seen[backend] = now
                entries.move_to_end(block)
        while len(entries) > self._most:
            entries.popitem(last=False)

    def matches(self, prefix: tuple[int, ...], now: float) -> dict[str, int]:
        """How many blocks of `prefix` the caches of backends should have; those that have none are not named."""
        entries = self._entries
        if not prefix or prefix[0] not in entries:
            return {}
        low, high = 1, len(prefix)
        while low < high:  # to the deepest block that anyone has seen, who has seen all before it
            middle = (low + high + 1) // 2
            if prefix[middle - 1] in entries:
                low = middle
            else:
                high = middle - 1
        oldest = now - _LIFETIME_SECONDS
        found: dict[str, int] = {}
        anyone = len(entries[prefix[0]])
        while low and len(found) < anyone:
            for backend, seen in entries.get(prefix[low - 1], _NOBODY).items():
                if seen >= oldest and backend not in found:
                    found[backend] = low
            low -= 1
        return found

    def matched_blocks(self, backend: str, prefix: tuple[int, ...], now: float) -> int:
        """As `matches`, for one backend."""
        return self.matches(prefix, now).get(backend, 0)
