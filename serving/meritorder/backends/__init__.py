"""How the ingress opens one attempt at a backend: HTTP, OpenAI's wire format.

Every backend is reached in the same way, so nothing here asks whether it is self-run or hosted. Which one to
try, and what to do when it fails, is for `ingress.dispatch` to say.
"""
