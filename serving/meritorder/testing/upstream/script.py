"""What the upstream is told to do: a list of rules, each with one behaviour for the requests it matches.

rules:
- model: gpt-*            # the first two requests are turned away, ...
  times: 2
  behaviour: {status: 429, headers: {retry-after: "1"}}
- endpoint: chat          # ... then every chat breaks off after five chunks
  behaviour: {ttft_ms: 200, itl_ms: 20, jitter: 0.3, fail_after_chunks: 5, fail_mode: close}
"""

import json
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from meritorder.testing.upstream.behaviour import Behaviour, StrictModel

Endpoint = Literal["chat", "completions", "embeddings", "models"]


class ScriptError(ValueError):
    """A script that cannot be used; the message is one line and names the field."""


class Rule(StrictModel):
    """Which requests a behaviour is for."""

    model: str | None = None
    """A model name or a pattern such as `gpt-*`; any model if it is left out."""
    endpoint: Endpoint | None = None
    """If left out, all but `models`: health probes list models, and must not use up a test's rules."""
    user: str | None = None
    """The body's `user`, or a pattern; any, or none, if it is left out. So a request can say itself what it meets."""
    times: int | None = Field(default=None, ge=1)
    """The rule applies to the first so many requests it matches, then never again."""
    behaviour: Behaviour = Behaviour()

    @model_validator(mode="after")
    def _the_list_of_models_is_for_all(self) -> Self:
        if self.endpoint == "models" and self.model is not None:
            raise ValueError("model has no meaning for the endpoint models")
        if self.endpoint == "models" and self.user is not None:
            raise ValueError("user has no meaning for the endpoint models")
        return self


class Script(StrictModel):
    """Rules in order: the first that matches and has not expired is applied; without one, the default is."""

    rules: list[Rule] = Field(default_factory=list)

    @classmethod
    def always(cls, behaviour: Behaviour) -> Self:
        """Return a script that treats every request in the same way."""
        return cls(rules=[Rule(behaviour=behaviour)])


def parse_script(data: Any) -> Script:
    """Return the script in parsed JSON or YAML; nothing at all is the empty script.

    Raises:
        ScriptError: with the path of the first wrong field, such as `rules.0.behaviour.ttft_ms`.
    """
    try:
        return Script.model_validate({} if data is None else data)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        # pydantic adds the alternatives of a union to the path; they look like `dict[str,...]`.
        where = ".".join(str(part) for part in problems[0]["loc"] if "[" not in str(part)) or "script"
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ScriptError(f"{where}: {problems[0]['msg'].removeprefix('Value error, ')}{more}") from None


def load_script(path: Path) -> Script:
    """Return the script in a `.json` file, or in a YAML file of any other name.

    Raises:
        ScriptError: the file cannot be read or parsed, or is no script.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        return parse_script(data)
    except ScriptError as error:
        raise ScriptError(f"{path}: {error}") from None
    except OSError as error:
        raise ScriptError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ScriptError(f"{path}: {reason}") from None
