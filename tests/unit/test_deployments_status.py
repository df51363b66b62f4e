"""What Serve reports, as one status and one sentence."""

import json
from typing import Any

import pytest

from meritorder.core.status import ApplicationStatus, Phase
from meritorder.deployments.local.failures import explain
from meritorder.deployments.local.observe import observe
from meritorder.deployments.local.restarts import MAX_RESTARTS, WINDOW, Restarts

REPLICA = """\
The deployment failed to start 1 times in a row. This may be due to a problem with its constructor or initial \
health check failing. See controller logs for details. Error:
\x1b[36mray::ServeReplica:model-faq:engine.initialize_and_get_metadata()\x1b[39m (pid=14681, ip=127.0.0.1, repr=<x>)
  File "/lib/python3.11/concurrent/futures/_base.py", line 449, in result
    return self.__get_result()
RuntimeError: Traceback (most recent call last):
  File "/lib/ray/serve/_private/replica.py", line 1867, in initialize
    await self._user_callable_wrapper.initialize_callable()
"""

TOO_LONG = """\
RuntimeError: Failed to create vLLM engine config: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (99999) is greater than the derived max_model_len \
(max_position_embeddings=2048.0 or model_max_length=None in model's config.json). To allow overriding this maximum, \
set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1. [type=value_error, input_value=ArgsKwargs((), {'model': ...})]
    For further information visit https://errors.pydantic.dev/2.14/v/value_error"""

OFFLINE = """\
RuntimeError: Failed to create vLLM engine config: We couldn't connect to 'https://huggingface.co' to load the \
files, and couldn't find them in the cached files.
Check your internet connection or see how to run the library in offline mode."""

ENGINE = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"

ENGINE_LOG = """\
(Worker pid=1) ERROR 11-22 11:51:22 [multiproc_executor.py:944] Traceback (most recent call last):
(Worker pid=1) ERROR 11-22 11:51:22 [multiproc_executor.py:944]     with safe_open(st_file, framework="pt") as f:
(Worker pid=1) ERROR 11-22 11:51:22 [multiproc_executor.py:944] safetensors.SafetensorError: invalid header length
(EngineCore pid=2) ERROR 11-22 11:51:24 [core.py:1374] Exception: WorkerProc initialization failed due to an \
exception in a background process. See stack trace for root cause.
"""

GPU_LOG = """\
(EngineCore pid=2) ERROR 11-22 11:51:24 [core.py:1374] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate \
2.00 GiB. GPU 0 has a total capacity of 22.05 GiB
"""


def details(message: str = "", status: str = "DEPLOY_FAILED", states: tuple[str, ...] = ()) -> dict[str, Any]:
    replicas = [{"replica_id": str(number), "state": state} for number, state in enumerate(states)]
    deployment = {"message": message, "replicas": replicas, "target_num_replicas": 1}
    return {
        "status": status,
        "message": "Failed to update the deployments ['engine'].",
        "deployments": {"engine": deployment},
    }


@pytest.mark.parametrize(
    ("last", "log", "sentence"),
    [
        (
            "meritorder.deployments.sources.SourceError: source /x does not exist or is not a folder",
            "",
            "source /x does not exist or is not a folder",
        ),
        (
            "meritorder.deployments.credentials.CredentialError: the environment variable K is not set or empty",
            "",
            "the environment variable K is not set or empty",
        ),
        (
            TOO_LONG,
            "",
            "User-specified max_model_len (99999) is greater than the derived max_model_len "
            "(max_position_embeddings=2048.0 or model_max_length=None in model's config.json)",
        ),
        (
            OFFLINE,
            "",
            "We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the "
            "cached files",
        ),
        ("ValueError: Unknown engine argument: frobnicate", "", "Unknown engine argument: frobnicate"),
        (ENGINE, ENGINE_LOG, "invalid header length"),
        (ENGINE, GPU_LOG, "out of memory: CUDA out of memory"),
        (ENGINE, "", "vLLM's engine ended while it started; the log of its worker process says why"),
    ],
    ids=["source", "key", "max_model_len", "offline", "argument", "weights", "memory", "no log"],
)
def test_the_reason_of_a_failure_is_one_sentence(last: str, log: str, sentence: str) -> None:
    asked: list[int] = []

    def logs_of(pid: int) -> str:
        asked.append(pid)
        return log

    assert explain(details(REPLICA + last), logs_of) == sentence
    assert asked in ([], [14681])


def test_a_model_that_waits_for_resources_says_so() -> None:
    message = (
        "Deployment 'engine' in application 'model-faq' has 1 replicas that have taken more than 30s to be "
        'scheduled. Resources required for each replica: [{"CPU": 1.0}], total resources available: {}.'
    )
    assert explain(details(message), lambda _: "") == 'waits until [{"CPU": 1.0}] are free: other models hold them'


def test_a_slow_start_is_not_a_failure() -> None:
    message = "Deployment 'engine' has 1 replicas that have taken more than 30s to initialize.\nThis may be slow."
    seen = observe("model-faq", "http://x", details(message, "DEPLOYING", ("STARTING",)), lambda _: "")
    assert seen == ApplicationStatus("model-faq", Phase.STARTING, "http://x", "", 0, 1)


@pytest.mark.parametrize(
    ("status", "states", "phase"),
    [
        ("DEPLOYING", (), Phase.STARTING),
        ("DEPLOYING", ("STARTING",), Phase.STARTING),
        ("RUNNING", ("RUNNING",), Phase.READY),
        ("DEPLOYING", ("RUNNING", "STARTING"), Phase.READY),
        ("UNHEALTHY", ("RUNNING",), Phase.READY),
        ("UNHEALTHY", (), Phase.STARTING),
        ("DEPLOY_FAILED", (), Phase.FAILED),
    ],
)
def test_an_application_is_ready_when_a_replica_runs(status: str, states: tuple[str, ...], phase: Phase) -> None:
    assert observe("model-faq", "http://x", details("", status, states), lambda _: "").phase is phase


def test_a_failed_change_beside_a_running_replica_is_told() -> None:
    failed = details(REPLICA + "ValueError: Unknown engine argument: frobnicate", states=("RUNNING", "STARTING"))
    seen = observe("model-faq", "http://x", failed, lambda _: "")
    said = "the last change could not be deployed, and the version before keeps running: "
    assert (seen.phase, seen.message) == (Phase.READY, said + "Unknown engine argument: frobnicate")


def test_a_failed_change_without_a_reason_is_told_too() -> None:
    seen = observe("model-faq", "http://x", details(states=("RUNNING",)), lambda _: "")
    assert seen.message == (
        "the last change could not be deployed, and the version before keeps running: "
        "it ended without a reason; see the log files"
    )


def test_a_status_survives_json() -> None:
    status = ApplicationStatus("model-faq", Phase.READY, "http://x", "fine", 1, 2)
    assert ApplicationStatus.from_json(json.loads(json.dumps(status.to_json()))) == status


@pytest.mark.parametrize("fields", [{}, {"application": "a", "phase": "?"}, {"phase": "Ready", "new": 1}, "text", None])
def test_what_is_not_a_status_is_refused(fields: Any) -> None:
    with pytest.raises(ValueError, match="not the status of an application"):
        ApplicationStatus.from_json(fields)


def test_a_replica_that_is_being_replaced_is_not_a_failure() -> None:
    seen = observe("model-faq", "http://x", details("", "UNHEALTHY"), lambda _: "")
    assert (seen.phase, seen.message) == (Phase.STARTING, "its replica died and is being replaced")


def test_what_serve_does_not_know_yet_is_pending() -> None:
    assert observe("model-faq", "http://x", None, lambda _: "").phase is Phase.PENDING


def test_a_replica_that_dies_again_and_again_is_given_up() -> None:
    restarts = Restarts()
    assert not restarts.too_many(["old"], target=1, now=0.0)
    for number in range(1 + MAX_RESTARTS):
        assert not restarts.too_many([f"r{number}"], target=1, now=float(number))
    assert restarts.too_many(["one-more"], target=1, now=100.0)


def test_restarts_long_ago_are_forgiven() -> None:
    restarts = Restarts()
    restarts.too_many([], target=1, now=0.0)
    for number in range(20):
        assert not restarts.too_many([f"r{number}"], target=1, now=number * WINDOW / 3)
