"""A script being played: which rule a request meets, and what the rules have counted so far."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from random import Random

from meritorder.testing.upstream.behaviour import Behaviour
from meritorder.testing.upstream.clock import Clock
from meritorder.testing.upstream.limits import Gate
from meritorder.testing.upstream.script import Endpoint, Rule, Script


@dataclass(frozen=True, slots=True)
class Turn:
    """One request's part in the script."""

    behaviour: Behaviour
    gate: Gate
    index: int
    """How many requests the rule had met before this one."""


class Pacer:
    """One turn's waits, counted from its start, so that time spent on writing does not add up.

    The random numbers belong to the turn: requests answered at the same time do not mix them up.
    """

    def __init__(self, turn: Turn, clock: Clock, start_s: float) -> None:
        jitter = turn.behaviour.jitter
        self._jitter = jitter
        self._random = Random(f"{turn.behaviour.seed}:{turn.index}") if jitter else None
        self._clock = clock
        self._due_s = start_s

    async def wait(self, milliseconds: float) -> None:
        """Wait until so many milliseconds, give or take the jitter, after the last wait was due to end."""
        factor = self._random.uniform(1 - self._jitter, 1 + self._jitter) if self._random else 1.0
        self._due_s += milliseconds * factor / 1000
        await self._clock.sleep(self._due_s - self._clock.monotonic())


class Playbook:
    """The script in force. Loading one starts all its counts afresh; running answers keep their behaviour."""

    def __init__(self, script: Script, clock: Clock) -> None:
        self._initial = script
        self._clock = clock
        self.load(script)

    @property
    def script(self) -> Script:
        """The script in force, as it was loaded."""
        return self._script

    def load(self, script: Script) -> None:
        """Put a script in force."""
        self._script = script
        self._rules = [_Counted(rule, self._clock) for rule in script.rules]
        self._default = _Counted(Rule(), self._clock)

    def reset(self) -> None:
        """Go back to the script that the upstream was started with."""
        self.load(self._initial)

    def meet(self, endpoint: Endpoint, model: str | None, user: str | None = None) -> Turn:
        """Count one request and return the behaviour for it."""
        for counted in self._rules:
            if counted.matches(endpoint, model, user):
                return counted.next_turn()
        return self._default.next_turn()


class _Counted:
    def __init__(self, rule: Rule, clock: Clock) -> None:
        self._rule = rule
        self._met = 0
        self._gate = Gate(rule.behaviour.requests_per_minute, rule.behaviour.concurrency, clock)

    def matches(self, endpoint: Endpoint, model: str | None, user: str | None) -> bool:
        rule = self._rule
        if rule.times is not None and self._met >= rule.times:
            return False
        if rule.endpoint is None and endpoint == "models":
            return False
        if rule.endpoint is not None and rule.endpoint != endpoint:
            return False
        return _fits(model, rule.model) and _fits(user, rule.user)

    def next_turn(self) -> Turn:
        turn = Turn(self._rule.behaviour, self._gate, self._met)
        self._met += 1
        return turn


def _fits(value: str | None, pattern: str | None) -> bool:
    return pattern is None or (value is not None and fnmatchcase(value, pattern))
