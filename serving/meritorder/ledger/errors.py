"""What a person is told of a ledger that cannot be used. Apart from the rest, because a command has to know it
before anything slow is imported."""


class StateError(Exception):
    """The state directory or the database cannot be used. The text is one sentence, for a person who can mend it."""
