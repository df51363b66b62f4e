"""Every mistake is named with its file, its line, its field, and what would be valid."""

from decimal import Decimal
from pathlib import Path

import pytest

from meritorder.manifests.catalog import catalog
from meritorder.manifests.folder import read
from meritorder.manifests.yaml_source import ManifestError

HEAD = "apiVersion: meritorder.dev/v1alpha1\n"
NO_CREDENTIALS = "{env: NAME}, {file: PATH} or {secretRef: {name: N, key: K}}"
SOURCES = "hf://organisation/name, hf://organisation/name@revision or file://path/to/folder"
DOLLARS = "expected US dollars, from 0 to 999999 and with up to nine decimals, such as 0.25"
COUNT = "expected a whole number from 1 to 1000000, without quotes"
NAME = "a name of up to 63 lower-case letters, digits and inner dashes, such as my-model"
ENDPOINTS = "chat/completions, completions, embeddings"
TOKENS = "expected a whole number of tokens from 1 to 1000000000000, without quotes"
SHARE = "expected a number from 0 to 1, such as 0.9, without quotes"
SECONDS = "expected a number of seconds, above 0 and up to 86400, such as 1.5, without quotes"
AMOUNT = "expected US dollars, from 0 to 999999999 and with up to six decimals, such as 250"
MODEL_FIELDS = "source, engineArgs, resources, replicaHourPrice, capabilities, scaling"
ROUTE_FIELDS = "candidates, objective, split, hedge, affinity, retries"
PRICE_FIELDS = (
    "input, output, cachedInput, cacheWrite, reasoning, audioInput, audioOutput, imageInput, imageOutput, tiers, "
    "serviceTiers, effectiveFrom"
)


def manifest(kind: str, name: str, spec: str) -> str:
    """The `spec` begins on line 5."""
    indented = "".join(f"  {line}\n" for line in spec.splitlines())
    return f"{HEAD}kind: {kind}\nmetadata: {{name: {name}}}\nspec:\n{indented}"


def model(spec: str, name: str = "faq") -> str:
    return manifest("Model", name, spec)


def provider(spec: str) -> str:
    return manifest("Provider", "hosted", spec + "\nmodels: [{name: chat, price: {input: 1, output: 2}}]")


def priced(price: str) -> str:
    return manifest("Provider", "hosted", f"type: simulated\nmodels:\n- name: chat\n  price: {price}")


def route(spec: str, name: str = "assistant") -> str:
    return manifest("Route", name, spec)


def split(*arms: str) -> str:
    """The first arm stands on line 10."""
    lines = "".join(f"\n  - {arm}" for arm in arms)
    return route(f"candidates:\n- model: faq\n- {{provider: hosted/chat, quality: 0.5}}\nsplit:\n  arms:{lines}")


def team(spec: str) -> str:
    return manifest("Team", "demo", spec)


def messages(tmp_path: Path, text: str | bytes) -> list[str]:
    file = tmp_path / "m.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ManifestError) as caught:
        catalog(read([file]))
    lines = str(caught.value).splitlines()
    assert len(lines) == len(caught.value.problems), "one problem is one line"
    return [line.removeprefix(f"{file}:") for line in lines]


SCHEMA = {
    "an unknown field": (
        model("source: hf://a/b\nreplicas: 3"),
        f"6: spec.replicas: unknown field; valid here: {MODEL_FIELDS}",
    ),
    "a misspelt field": (
        model("source: hf://a/b\nscalng: {}"),
        f"6: spec.scalng: unknown field (did you mean 'scaling'?); valid here: {MODEL_FIELDS}",
    ),
    "a misspelt field deep inside": (
        model("source: hf://a/b\nresources:\n  gpu:\n    type: L4\n    cuont: 2"),
        "9: spec.resources.gpu.cuont: unknown field (did you mean 'count'?); valid here: type, count",
    ),
    "a field in snake case": (
        provider("type: openai-compatible\nbaseURL: http://x\nbase_url: http://y\ncredentials: {env: KEY}"),
        "7: spec.base_url: unknown field (did you mean 'baseURL'?); "
        "valid here: type, baseURL, credentials, limits, models",
    ),
    "a value that is not one of a few": (
        provider("type: opnai"),
        "5: spec.type: expected one of openai, openai-compatible, simulated, got 'opnai' (did you mean 'openai'?)",
    ),
    "no spec": (
        f"{HEAD}kind: Route\nmetadata:\n  name: x\n",
        f"1: spec: this field is required: a mapping with {ROUTE_FIELDS}",
    ),
    "no source": (model("resources: {cpu: 1}"), f"4: spec.source: this field is required: {SOURCES}"),
    "a source of an unknown kind": (
        model("source: s3://bucket/x"),
        f"5: spec.source: expected {SOURCES}, got 's3://bucket/x'",
    ),
    "a repository without its organisation": (
        model("source: hf://name"),
        f"5: spec.source: expected {SOURCES}, got 'hf://name'",
    ),
    "two sources of credentials": (
        provider("type: openai\ncredentials: {env: KEY, file: /run/key}"),
        "6: spec.credentials: give exactly one of env: NAME, file: PATH and secretRef: {name: N, key: K}",
    ),
    "no source of credentials": (
        provider("type: openai\ncredentials: {}"),
        "6: spec.credentials: give exactly one of env: NAME, file: PATH and secretRef: {name: N, key: K}",
    ),
    "no credentials": (
        provider("type: openai"),
        f"4: spec.credentials: this field is required for the type openai: {NO_CREDENTIALS}",
    ),
    "no URL where there is no default": (
        provider("type: openai-compatible\ncredentials: {env: KEY}"),
        "4: spec.baseURL: this field is required for the type openai-compatible: "
        "the URL below which the API answers, such as https://api.example.com/v1",
    ),
    "a URL for the simulated provider": (
        provider("type: simulated\nbaseURL: http://localhost:1"),
        "6: spec.baseURL: a simulated provider has no baseURL; remove it",
    ),
    "credentials for the simulated provider": (
        provider("type: simulated\ncredentials: {env: KEY}"),
        "6: spec.credentials: a simulated provider has no credentials; remove it",
    ),
    "another version": (
        "apiVersion: v1\nkind: Team\nmetadata: {name: x}\n",
        "1: apiVersion: expected meritorder.dev/v1alpha1, got 'v1'",
    ),
    "no version": (
        "kind: Team\nmetadata: {name: x}\n",
        "1: apiVersion: this field is required: meritorder.dev/v1alpha1",
    ),
    "an unknown kind": (
        f"{HEAD}kind: Deployment\n",
        "2: kind: expected one of Model, Provider, Route, Team, got 'Deployment'",
    ),
    "a misspelt kind": (
        f"{HEAD}kind: model\n",
        "2: kind: expected one of Model, Provider, Route, Team, got 'model' (did you mean 'Model'?)",
    ),
    "no kind": (HEAD, "1: kind: this field is required: one of Model, Provider, Route, Team"),
    "a list for a kind": (
        f"{HEAD}kind: [Model]\n",
        "2: kind: expected one of Model, Provider, Route, Team, got a list",
    ),
    "an empty list": (
        route("candidates: []"),
        "5: spec.candidates: expected a list of at least one, each a mapping with model, provider, quality, "
        "got an empty list",
    ),
    "a text for a list": (
        model("source: hf://a/b\ncapabilities: {endpoints: completions}"),
        f"6: spec.capabilities.endpoints: expected a list of at least one, each one of {ENDPOINTS}, got 'completions'",
    ),
    "a text for a mapping": (
        route("candidates:\n- model: faq\n- faq"),
        "7: spec.candidates[1]: expected a mapping with model, provider, quality, got 'faq'",
    ),
    "nothing for a mapping": (route(""), f"4: spec: expected a mapping with {ROUTE_FIELDS}, got nothing"),
    "a number for a text": (
        f"{HEAD}kind: Team\nmetadata:\n  name: team\n  labels:\n    cost: 5\n",
        "6: metadata.labels.cost: expected text, got 5; put it in quotes to make it text",
    ),
    "a truth value for a text": (
        f"{HEAD}kind: Team\nmetadata: {{name: yes}}\n",
        f"3: metadata.name: expected {NAME}, got true; put it in quotes to make it text",
    ),
    "a truth value for a number": (
        model("source: hf://a/b\nresources: {cpu: true}"),
        f"6: spec.resources.cpu: {COUNT}, got true",
    ),
    "a text for a number": (
        model("source: hf://a/b\nscaling: {minReplicas: '2'}"),
        f"6: spec.scaling.minReplicas: {COUNT}, got '2'",
    ),
    "no replicas": (
        model("source: hf://a/b\nscaling: {minReplicas: 0}"),
        f"6: spec.scaling.minReplicas: {COUNT}, got 0",
    ),
    "a fraction for a whole number": (
        model("source: hf://a/b\nresources: {cpu: 0.5}"),
        f"6: spec.resources.cpu: {COUNT}, got 0.5",
    ),
    "an absurd number": (
        model(f"source: hf://a/b\nresources: {{cpu: 0x{'f' * 5000}}}"),
        f"6: spec.resources.cpu: {COUNT}, got a number of too many digits",
    ),
    "an engine argument that another field determines": (
        model("source: hf://a/b\nengineArgs:\n  tensor_parallel_size: 2"),
        "7: spec.engineArgs.tensor_parallel_size: set spec.resources.tensorParallel instead",
    ),
    "sequences that cannot be counted": (
        model("source: hf://a/b\nengineArgs:\n  max_num_seqs: many"),
        "7: spec.engineArgs.max_num_seqs: expected a whole number of at least 1",
    ),
    "GPUs that cannot be shared out": (
        model("source: hf://a/b\nresources:\n  gpu: {type: L4, count: 3}\n  tensorParallel: 2"),
        "8: spec.resources.tensorParallel: must divide gpu.count, and 2 does not divide 3",
    ),
    "a name with capitals": (
        f"{HEAD}kind: Team\nmetadata: {{name: My_Team}}\n",
        f"3: metadata.name: expected {NAME}, got 'My_Team'",
    ),
    "a name that is too long": (
        f"{HEAD}kind: Team\nmetadata: {{name: {'x' * 64}}}\n",
        f"3: metadata.name: expected {NAME}, got '{'x' * 60}'...",
    ),
    "a candidate of two kinds": (
        route("candidates:\n- {model: faq, provider: hosted/chat}"),
        "6: spec.candidates[0]: give exactly one of model: NAME and provider: PROVIDER/MODEL",
    ),
    "a hosted candidate without its model": (
        route("candidates:\n- provider: hosted"),
        "6: spec.candidates[0].provider: expected the name of a hosted model, PROVIDER/MODEL, "
        "such as openai/gpt-5, got 'hosted'",
    ),
    "a price that is none": (
        priced("free"),
        f"8: spec.models[0].price: expected a mapping with {PRICE_FIELDS}, got 'free'",
    ),
    "half a price": (
        priced("{input: 1}"),
        "8: spec.models[0].price.output: this field is required: " + DOLLARS.removeprefix("expected "),
    ),
    "a price of true": (priced("{input: true, output: 1}"), f"8: spec.models[0].price.input: {DOLLARS}, got true"),
    "a price in words": (priced("{input: free, output: 1}"), f"8: spec.models[0].price.input: {DOLLARS}, got 'free'"),
    "a negative price": (priced("{input: -1, output: 1}"), f"8: spec.models[0].price.input: {DOLLARS}, got -1"),
    "a price that is not a number": (
        priced("{input: .nan, output: 1}"),
        f"8: spec.models[0].price.input: {DOLLARS}, got 'nan'",
    ),
    "an infinite price": (priced("{input: .inf, output: 1}"), f"8: spec.models[0].price.input: {DOLLARS}, got 'inf'"),
    "a price beyond all bounds": (
        priced("{input: 1e400, output: 1}"),
        f"8: spec.models[0].price.input: {DOLLARS}, got '1e400'",
    ),
    "a price of more digits than a float keeps": (
        priced("{input: 0.1234567890123, output: 1}"),
        f"8: spec.models[0].price.input: {DOLLARS}, got 0.1234567890123",
    ),
    "a replica-hour without a price": (
        model("source: hf://a/b\nreplicaHourPrice: cheap"),
        f"6: spec.replicaHourPrice: {DOLLARS}, got 'cheap'",
    ),
    "a context window in words": (
        model("source: hf://a/b\ncapabilities: {contextWindow: 16k}"),
        f"6: spec.capabilities.contextWindow: {TOKENS}, got '16k'",
    ),
    "a context window that the engine has not": (
        model("source: hf://a/b\nengineArgs: {max_model_len: 2048}\ncapabilities:\n  contextWindow: 4096"),
        "8: spec.capabilities.contextWindow: must not be above engineArgs.max_model_len, and 4096 is above 2048",
    ),
    "answers longer than the engine gives": (
        model("source: hf://a/b\nengineArgs: {max_model_len: 2048}\ncapabilities: {maxOutputTokens: 4096}"),
        "7: spec.capabilities.maxOutputTokens: must not be above engineArgs.max_model_len, and 4096 is above 2048",
    ),
    "answers longer than the context window": (
        model("source: hf://a/b\ncapabilities:\n  contextWindow: 100\n  maxOutputTokens: 200"),
        "8: spec.capabilities.maxOutputTokens: must not be above contextWindow, and 200 is above 100",
    ),
    "an unknown modality": (
        model("source: hf://a/b\ncapabilities:\n  modalities: [text, image]"),
        "7: spec.capabilities.modalities[0]: expected one of image, audio, file, got 'text'",
    ),
    "a truth value in quotes": (
        model("source: hf://a/b\ncapabilities: {tools: 'yes'}"),
        "6: spec.capabilities.tools: expected true or false, got 'yes'",
    ),
    "a number for a truth value": (
        route("candidates:\n- model: faq\naffinity: 1"),
        "7: spec.affinity: expected true or false, got 1",
    ),
    "a rate of none": (
        provider("type: simulated\nlimits: {rpm: 0}"),
        f"6: spec.limits.rpm: {COUNT}, got 0",
    ),
    "a quality above one": (
        route("candidates:\n- {model: faq, quality: 1.2}"),
        f"6: spec.candidates[0].quality: {SHARE}, got 1.2",
    ),
    "a quality in percent": (
        route("candidates:\n- {model: faq, quality: 80%}"),
        f"6: spec.candidates[0].quality: {SHARE}, got '80%'",
    ),
    "a quality of true": (
        route("candidates:\n- {model: faq, quality: true}"),
        f"6: spec.candidates[0].quality: {SHARE}, got true",
    ),
    "a quality that is not a number": (
        route("candidates:\n- {model: faq, quality: .nan}"),
        f"6: spec.candidates[0].quality: {SHARE}, got nan",
    ),
    "a quality floor that no candidate reaches": (
        route("candidates:\n- {model: faq, quality: 0.8}\nobjective:\n  qualityFloor: 0.9"),
        "8: spec.objective.qualityFloor: leaves no candidate: the best has the quality 0.8",
    ),
    "a duration with its unit": (
        route("candidates:\n- model: faq\nobjective:\n  timeout: 30s"),
        f"8: spec.objective.timeout: {SECONDS}, got '30s'",
    ),
    "a duration of nothing": (
        route("candidates:\n- model: faq\nobjective:\n  ttftSLO: 0"),
        f"8: spec.objective.ttftSLO: {SECONDS}, got 0",
    ),
    "an objective in pydantic's camel case": (
        route("candidates:\n- model: faq\nobjective:\n  ttftSlo: 1"),
        "8: spec.objective.ttftSlo: unknown field (did you mean 'ttftSLO'?); "
        "valid here: qualityFloor, qualityWorth, ttftSLO, latenessCost, timeout",
    ),
    "a cost of being late where nothing is late": (
        route("candidates:\n- model: faq\nobjective:\n  latenessCost: 0.1"),
        "8: spec.objective.latenessCost: has no effect without ttftSLO, which says what is late",
    ),
    "too many retries": (
        route("candidates:\n- model: faq\nretries: 6"),
        "7: spec.retries: expected a whole number from 0 to 5, without quotes, got 6",
    ),
    "a hedge of nothing": (
        route("candidates:\n- model: faq\nhedge: {maxShare: 0}"),
        "7: spec.hedge.maxShare: expected a number above 0 and up to 1, such as 0.05, without quotes, got 0",
    ),
    "a hedge of one candidate": (
        route("candidates:\n- model: faq\nhedge: {maxShare: 0.1}"),
        "7: spec.hedge: has no effect where a request has one candidate; add a second one",
    ),
    "a hedge where each arm has one candidate": (
        split("{name: a, weight: 1, candidates: [faq]}", "{name: b, weight: 1, candidates: [hosted/chat]}")
        + "  hedge: {maxShare: 0.1}\n",
        "12: spec.hedge: has no effect where a request has one candidate; add a second one",
    ),
    "a split without arms": (
        route("candidates:\n- model: faq\nsplit: {arms: []}"),
        "7: spec.split.arms: expected a list of at least two, each a mapping with name, weight, candidates, "
        "got an empty list",
    ),
    "a split of one arm": (
        split("{name: a, weight: 1, candidates: [faq]}"),
        "9: spec.split.arms: expected a list of at least two, each a mapping with name, weight, candidates, "
        "got a list of 1",
    ),
    "a split that sticks to what there is not": (
        split("{name: a, weight: 1, candidates: [faq]}", "{name: b, weight: 1, candidates: [hosted/chat]}")
        + "    stickyBy: team\n",
        "12: spec.split.stickyBy: expected one of key, user, session, request, got 'team'",
    ),
    "an arm without weight": (
        split("{name: a, weight: 0, candidates: [faq]}", "{name: b, weight: 1, candidates: [hosted/chat]}"),
        f"10: spec.split.arms[0].weight: {COUNT}, got 0",
    ),
    "two arms of one name": (
        split("{name: a, weight: 1, candidates: [faq]}", "{name: a, weight: 1, candidates: [hosted/chat]}"),
        "11: spec.split.arms[1].name: 'a' is listed twice",
    ),
    "an arm with a candidate that the route has not": (
        split("{name: a, weight: 1, candidates: [faq]}", "{name: b, weight: 1, candidates: [hosted/caht]}"),
        "11: spec.split.arms[1].candidates[0]: 'hosted/caht' is no candidate of this route "
        "(did you mean 'hosted/chat'?); its candidates: faq, hosted/chat",
    ),
    "an arm that names a candidate twice": (
        split("{name: a, weight: 1, candidates: [faq, faq]}", "{name: b, weight: 1, candidates: [hosted/chat]}"),
        "10: spec.split.arms[0].candidates[1]: 'faq' is listed twice",
    ),
    "an arm below the quality floor": (
        split("{name: a, weight: 1, candidates: [faq]}", "{name: b, weight: 1, candidates: [hosted/chat]}")
        + "  objective: {qualityFloor: 0.7}\n",
        "11: spec.split.arms[1].candidates: none of them has the quality 0.7, which objective.qualityFloor asks for",
    ),
    "a budget without a period": (
        team("budgets:\n- {amount: 10}"),
        "6: spec.budgets[0].period: this field is required: one of hourly, daily, monthly, total",
    ),
    "a budget for a period that there is not": (
        team("budgets:\n- {period: weekly, amount: 10}"),
        "6: spec.budgets[0].period: expected one of hourly, daily, monthly, total, got 'weekly'",
    ),
    "a negative budget": (
        team("budgets:\n- {period: daily, amount: -1}"),
        f"6: spec.budgets[0].amount: {AMOUNT}, got -1",
    ),
    "two budgets for one period": (
        team("budgets:\n- {period: daily, amount: 1}\n- {period: total, amount: 5}\n- {period: daily, amount: 2}"),
        "8: spec.budgets[2].period: 'daily' is listed twice",
    ),
    "an override in the words of a request": (
        team("overrides: [max_cost_usd]"),
        "5: spec.overrides[0]: expected one of maxCost, maxTTFT, minQuality, backend, exclude, got 'max_cost_usd' "
        "(did you mean 'maxCost'?)",
    ),
}

YAML = {
    "a scalar": ("hello\n", "1: expected a mapping with apiVersion, kind, metadata, spec, got 'hello'"),
    "a list": ("- kind: Model\n", "1: expected a mapping with apiVersion, kind, metadata, spec, got a list"),
    "not YAML": (
        "kind: Model\nspec: [1,\n}",
        "3: not valid YAML: while parsing a flow node, expected the node content, but found '}'",
    ),
    "a tab": (
        "spec:\n\tsource: x",
        "2: not valid YAML: while scanning for the next token, found character '\\t' that cannot start any token",
    ),
    "two colons": ("kind: Model: x", "1: not valid YAML: mapping values are not allowed here"),
    "an unknown alias": ("a: *b", "1: not valid YAML: found undefined alias 'b'"),
    "a Python object": (
        "\na: !!python/object:os.system x",
        "2: not valid YAML: the type 'python/object:os.system' is not one that JSON has",
    ),
    "binary data": ("a: !!binary aGk=", "1: not valid YAML: the type 'binary' is not one that JSON has"),
    "a type that does not fit": ("a: !!int x", "1: not valid YAML: 'x' cannot be read as a whole number"),
    "an empty number": ("a: !!int ''", "1: not valid YAML: '' cannot be read as a whole number"),
    "an empty truth value": ("a: !!bool ''", "1: not valid YAML: '' cannot be read as true or false"),
    "an integer that Python refuses to read": (
        "a: " + "9" * 5000,
        f"1: not valid YAML: '{'9' * 60}' cannot be read as a whole number",
    ),
    "a repeated key": (
        model("source: hf://a/b\nresources:\n  cpu: 1\n  cpu: 2"),
        "8: spec.resources.cpu: given twice, first on line 7",
    ),
    "a key that is a number": (
        model("source: hf://a/b\nengineArgs: {1: x}"),
        "6: spec.engineArgs.1: a key must be text; put it in quotes",
    ),
    "a key that YAML takes for a truth value": (
        model("source: hf://a/b\nengineArgs: {on: x}"),
        "6: spec.engineArgs.on: a key must be text; put it in quotes",
    ),
    "a key that is a list": ("spec:\n  ? [a]\n  : b\n", "2: spec: a key must be text, not a list or a mapping"),
    "a loop": ("spec: &spec\n  more: *spec\n", "1: spec.more: refers to itself"),
    "a control character": ("a: b\nc: \x00", "2: not text: it has the character U+0000"),
    "Latin-1": ("a: b\nc: café\n".encode("latin-1"), "2: not UTF-8 text: it has the byte 0xe9"),
    "UTF-16": ("a: b".encode("utf-16-le") + b"\xff\xff", "1: not UTF-8 text: it has the byte 0xff"),
    "too deep": ("[" * 100_000, " nested too deeply to be a manifest"),
}

QUICKSTART = "\n---\n".join(
    (model("source: hf://a/b"), model("source: hf://a/c", "coder"), provider("type: simulated"))
)
REFERENCES = {
    "a model that does not exist": (
        route("candidates:\n- model: fak"),
        "spec.candidates[0].model: there is no Model 'fak' (did you mean 'faq'?); defined: coder, faq",
    ),
    "a hosted model that does not exist": (
        route("candidates:\n- provider: hosted/chatt"),
        "spec.candidates[0].provider: there is no model of a Provider 'hosted/chatt' "
        "(did you mean 'hosted/chat'?); defined: hosted/chat",
    ),
    "a candidate listed twice": (
        route("candidates:\n- model: faq\n- model: coder\n- model: faq"),
        "spec.candidates[2].model: 'faq' is listed twice",
    ),
    "a route named like a model": (
        route("candidates:\n- model: faq", "coder"),
        "metadata.name: 'coder' is the name of a Model, too; choose another name for the Route",
    ),
    "a team with a route that does not exist": (
        manifest("Team", "demo", "routes: [faq, hosted/caht]"),
        "spec.routes[1]: there is no Route or model 'hosted/caht' (did you mean 'hosted/chat'?); "
        "defined: coder, faq, hosted/chat",
    ),
    "a hosted model listed twice": (
        manifest("Provider", "other", "type: simulated\nmodels:\n" + "- {name: c, price: {input: 1, output: 1}}\n" * 2),
        "spec.models[1].name: 'c' is listed twice",
    ),
}


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in (SCHEMA | YAML).items()])
def test_a_mistake_is_one_line_that_says_where_it_is_and_what_would_be_valid(
    tmp_path: Path, case: tuple[str | bytes, str]
) -> None:
    text, message = case
    assert messages(tmp_path, text) == [message]


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in REFERENCES.items()])
def test_a_reference_that_leads_nowhere_is_named_with_what_there_is(tmp_path: Path, case: tuple[str, str]) -> None:
    text, message = case
    (problem,) = messages(tmp_path, f"{text}---\n{QUICKSTART}")
    assert problem.split(": ", 1)[1] == message


def test_the_line_is_that_of_the_document_in_the_file(tmp_path: Path) -> None:
    text = model("source: hf://a/b") + "---\n" + model("source: hf://a/b\nscaling: 1", "other")
    assert messages(tmp_path, text) == ["12: spec.scaling: expected a mapping with minReplicas, got 1"]


def test_all_mistakes_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    text = model("source: hf://a\nscaling: {minReplicas: no}\nsize: 1") + "---\nhello\n---\na: 1\na: 2\n"
    assert [message.split(": ")[:2] for message in messages(tmp_path, text)] == [
        ["5", "spec.source"],
        ["6", "spec.scaling.minReplicas"],
        ["7", "spec.size"],
        ["9", "expected a mapping with apiVersion, kind, metadata, spec, got 'hello'"],
        ["12", "a"],
    ]


@pytest.mark.parametrize(
    "spec",
    [
        "type: openai\ncredentials: sk-x9y8",
        "type: openai\ncredentials: {env: sk-x9y8}",
        "type: openai\ncredentials: {key: sk-x9y8}",
        "type: openai\ncredentials: {secretRef: sk-x9y8}",
        "type: openai\ncredentials: {secretRef: {name: Sk-x9y8, key: ' sk-x9y8'}}",
        "type: openai\ncredentials: [sk-x9y8]",
        "type: openai\ncredentials: {env: A}\nbaseURL: https://sk-x9y8@example.com",
        "type: openai\ncredentials: {env: A}\nbaseURL: https://example.com?key=sk-x9y8",
        "type: simulated\nbaseURL: https://example.com/sk-x9y8",
    ],
)
def test_a_key_pasted_by_mistake_is_not_repeated(tmp_path: Path, spec: str) -> None:
    found = messages(tmp_path, provider(spec))
    assert found
    assert not [message for message in found if "x9y8" in message]


@pytest.mark.parametrize(
    "url",
    [
        "api.example.com",
        "ftp://api.example.com",
        "https://",
        "https://user:pass@example.com",
        "https://example.com/v1?key=x",
        "https://example.com/#x",
        "https://exa mple.com",
        "https://[::1",
        "https://example.com:99999",
        "https://example.com:0",
        "https://example.com:port",
    ],
)
def test_a_url_that_cannot_be_called_is_refused(tmp_path: Path, url: str) -> None:
    spec = f"type: openai-compatible\nbaseURL: '{url}'\ncredentials: {{env: KEY}}"
    assert messages(tmp_path, provider(spec)) == [
        "6: spec.baseURL: expected an http:// or https:// URL without user, password, query and fragment, "
        "such as https://api.example.com/v1"
    ]


@pytest.mark.parametrize("url", ["http://localhost:8000", "https://[::1]:8000/v1/", "http://10.0.0.1/a/b"])
def test_a_url_is_kept_without_its_last_slash(tmp_path: Path, url: str) -> None:
    spec = f"type: openai-compatible\nbaseURL: '{url}'\ncredentials: {{env: KEY}}"
    (tmp_path / "m.yaml").write_text(provider(spec))
    assert read([tmp_path]).providers[0].spec.base_url == url.rstrip("/")


def test_a_date_stays_the_text_that_it_is_written_as(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(f"{HEAD}kind: Team\nmetadata: {{name: x, labels: {{since: 2026-01-02}}}}\n")
    assert read([tmp_path]).teams[0].metadata.labels == {"since": "2026-01-02"}


def test_anchors_and_merges_are_understood(tmp_path: Path) -> None:
    models = "models:\n- {name: a, price: &cheap {input: 1, output: 2}}\n- {name: b, price: {<<: *cheap, output: 3}}"
    (tmp_path / "m.yaml").write_text(manifest("Provider", "hosted", f"type: simulated\n{models}"))
    one, other = (each.price.root[0] for each in read([tmp_path]).providers[0].spec.models if each.price)
    assert (one.input, one.output) == (Decimal(1), Decimal(2))
    assert (other.input, other.output) == (Decimal(1), Decimal(3))
