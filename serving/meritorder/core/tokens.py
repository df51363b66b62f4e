"""How many tokens a text has, where nobody counted them: the stated estimate.

OpenAI's rule of thumb for English is four bytes to a token; other languages and code have fewer bytes to one, which
is why what must not be too small is bounded at `SAFE_BYTES_PER_TOKEN`.
Source: https://help.openai.com/en/articles/4936856-what-are-tokens-and-how-to-count-them
"""

BYTES_PER_TOKEN = 4
SAFE_BYTES_PER_TOKEN = 2


def estimated_tokens(text_bytes: int) -> int:
    """What is billed for a prompt of this size where the backend reports no usage, and marked as estimated."""
    return max(1, -(-text_bytes // BYTES_PER_TOKEN))


def most_tokens(text_bytes: int) -> int:
    """As many as a prompt of this size will hardly exceed."""
    return max(1, -(-text_bytes // SAFE_BYTES_PER_TOKEN))
