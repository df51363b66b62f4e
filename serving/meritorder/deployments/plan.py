"""What `ray.serve.llm` and Serve are told for one `Model`: pure, without Ray or vLLM.

`LLMConfig` would derive the resources itself, but only after it has imported vLLM (8 s in the process that
builds the application); here they are written out, so that only the replica imports it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meritorder.manifests.kinds import Gpu, Model

UNLIMITED_ONGOING_REQUESTS = 1_000_000
"""What runs at once is decided by vLLM's `max_num_seqs`; Serve must never be the hidden limit below it."""

HEALTH_CHECK_PERIOD_S = 3.0
"""A dead engine is replaced after three checks; with the 10 s of `ray.serve.llm` it took 29 s to notice one."""

HEALTH_CHECK_TIMEOUT_S = 30.0

NODE_INIT = "meritorder.deployments.llm_server.SkipNodeInit"

CPU_ENVIRONMENT = {
    # Without this the first request compiles kernels for 5 to 26 s, and kills the engine where there is no g++.
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
}
LOCAL_ENVIRONMENT = {"HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """One `Model`, ready to deploy.

    `llm_config` are the keyword arguments of `ray.serve.llm.LLMConfig`; `options` those of `serve.deployment`;
    `environment` are defaults for the replica's environment variables, which those that are set override.
    """

    llm_config: Mapping[str, Any]
    options: Mapping[str, Any]
    environment: Mapping[str, str]


def plan(model: Model) -> ModelPlan:
    """Plan `model`."""
    source, engine_source = _source(model)
    resources = model.spec.resources
    bundles = _bundles(resources.gpu, resources.cpu)
    llm_config: dict[str, Any] = {
        "model_loading_config": {"model_id": model.name, "model_source": source},
        "accelerator_type": accelerator_type(resources.gpu) if resources.gpu else None,
        "placement_group_config": {"bundles": bundles},
        "engine_kwargs": {**model.spec.engine_args, **engine_source, **_parallelism(model)},
        # Both say the number of replicas: `ray.serve.llm` would add an autoscaler, which resets external counts.
        "deployment_config": {"num_replicas": model.spec.scaling.min_replicas},
        "callback_config": {"callback_class": NODE_INIT},
    }
    options: dict[str, Any] = {
        "num_replicas": model.spec.scaling.min_replicas,
        "max_ongoing_requests": UNLIMITED_ONGOING_REQUESTS,
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": HEALTH_CHECK_TIMEOUT_S,
        "ray_actor_options": {"num_cpus": resources.cpu, "num_gpus": 0},
        "placement_group_bundles": bundles,
        "placement_group_strategy": "PACK",
    }
    return ModelPlan(llm_config, options, _environment(model))


def accelerator_type(gpu: Gpu) -> str:
    """Ray's name of the accelerator; the `A100-80GB` of GPU labels is Ray's `A100-80G`."""
    return gpu.type.removesuffix("B") if gpu.type.endswith("GB") else gpu.type


def _source(model: Model) -> tuple[str, dict[str, Any]]:
    """vLLM's model argument, and the engine arguments that belong to it."""
    scheme, _, rest = model.spec.source.partition("://")
    if scheme == "file":
        return rest, {}
    repository, _, revision = rest.partition("@")
    return repository, {"revision": revision} if revision else {}


def _parallelism(model: Model) -> dict[str, int]:
    gpu = model.spec.resources.gpu
    if gpu is None:
        return {}
    tensor = model.spec.resources.tensor_parallel or gpu.count
    stages = gpu.count // tensor
    return {"tensor_parallel_size": tensor} | ({"pipeline_parallel_size": stages} if stages > 1 else {})


def _bundles(gpu: Gpu | None, cpu: int) -> list[dict[str, float]]:
    """What a replica reserves: the first bundle holds the replica itself, every GPU is a bundle of its own."""
    if gpu is None:
        return [{"CPU": cpu}]
    worker: dict[str, float] = {"GPU": 1, f"accelerator_type:{accelerator_type(gpu)}": 0.001}
    return [{"CPU": cpu, **worker}, *(dict(worker) for _ in range(gpu.count - 1))]


def _environment(model: Model) -> dict[str, str]:
    local = LOCAL_ENVIRONMENT if model.spec.source.startswith("file://") else {}
    return dict(local) if model.spec.resources.gpu else {**CPU_ENVIRONMENT, **local}
