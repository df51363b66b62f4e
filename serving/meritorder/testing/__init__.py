"""Stand-ins that are shipped, because the quickstart and the load test use them too and not only the tests.

What belongs here: whole replacements for something outside of Merit Order (a hosted provider, model
weights), which speak the real protocol over a real socket or file and say "simulated" wherever a person
can see them. They import nothing else of the product: a stand-in that shared its code would share its bugs.

What does not: fixtures, assertions and fakes of our own seams, which live in `tests/` beside their users;
and anything that production code would import.
"""
