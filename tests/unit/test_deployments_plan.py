"""What a `Model` becomes, without Ray or vLLM."""

import subprocess
import sys
from typing import Any

import pytest

from meritorder.deployments.applications import applications, model_entry, provider_entry
from meritorder.deployments.local.preflight import refusal
from meritorder.deployments.plan import plan
from meritorder.manifests.kinds import Model, Provider


def model(source: str = "hf://meta-llama/Llama-3.1-70B-Instruct@5f0b02c", **spec: Any) -> Model:
    return Model.model_validate(
        {
            "apiVersion": "meritorder.dev/v1alpha1",
            "kind": "Model",
            "metadata": {"name": "faq"},
            "spec": {"source": source, **spec},
        }
    )


def provider(**spec: Any) -> Provider:
    price = {"input": 1, "output": 2}
    return Provider.model_validate(
        {
            "apiVersion": "meritorder.dev/v1alpha1",
            "kind": "Provider",
            "metadata": {"name": "acme"},
            "spec": {"models": [{"name": "m", "price": price}], **spec},
        }
    )


GPU = {"gpu": {"type": "A100-80GB", "count": 4}, "tensorParallel": 4, "cpu": 8}


def test_a_model_on_gpus() -> None:
    planned = plan(model(engineArgs={"max_model_len": 8192}, resources=GPU, scaling={"minReplicas": 2}))
    worker = {"GPU": 1, "accelerator_type:A100-80G": 0.001}
    assert planned.llm_config == {
        "model_loading_config": {"model_id": "faq", "model_source": "meta-llama/Llama-3.1-70B-Instruct"},
        "accelerator_type": "A100-80G",
        "placement_group_config": {"bundles": [{"CPU": 8, **worker}, worker, worker, worker]},
        "engine_kwargs": {"max_model_len": 8192, "revision": "5f0b02c", "tensor_parallel_size": 4},
        "deployment_config": {"num_replicas": 2},
        "callback_config": {"callback_class": "meritorder.deployments.llm_server.SkipNodeInit"},
    }
    assert planned.options["num_replicas"] == 2
    assert planned.options["placement_group_bundles"] == [{"CPU": 8, **worker}, worker, worker, worker]
    assert planned.environment == {}, "weights must be fetched, and kernels compiled"


def test_a_model_on_the_cpu() -> None:
    planned = plan(model("file:///models/tiny", engineArgs={"enforce_eager": True}, resources={"cpu": 2}))
    assert planned.llm_config["model_loading_config"]["model_source"] == "/models/tiny"
    assert planned.llm_config["accelerator_type"] is None
    assert planned.llm_config["placement_group_config"] == {"bundles": [{"CPU": 2}]}
    assert planned.llm_config["engine_kwargs"] == {"enforce_eager": True}
    assert planned.options["ray_actor_options"] == {"num_cpus": 2, "num_gpus": 0}
    assert planned.environment == {
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
    }


def test_weights_that_must_be_fetched_are_fetched_on_the_cpu_too() -> None:
    assert "HF_HUB_OFFLINE" not in plan(model()).environment


def test_gpus_beyond_the_tensor_parallel_ones_are_pipeline_stages() -> None:
    planned = plan(model(resources={"gpu": {"type": "L4", "count": 4}, "tensorParallel": 2}))
    assert planned.llm_config["engine_kwargs"]["tensor_parallel_size"] == 2
    assert planned.llm_config["engine_kwargs"]["pipeline_parallel_size"] == 2


def test_serve_is_never_the_limit_below_max_num_seqs() -> None:
    planned = plan(model(engineArgs={"max_num_seqs": 4096}))
    assert planned.options["max_ongoing_requests"] > 4096


def test_nothing_scales_on_its_own() -> None:
    planned = plan(model())
    assert "autoscaling_config" not in planned.options
    assert planned.options["num_replicas"] == planned.llm_config["deployment_config"]["num_replicas"] == 1


def test_an_application_is_its_manifest_as_json() -> None:
    written = model(engineArgs={"max_num_seqs": 4}, resources=GPU)
    entry = model_entry(written)
    assert entry["name"] == "model-faq"
    assert entry["route_prefix"] == "/models/faq"
    assert entry["import_path"] == "meritorder.deployments.apps:model_app"
    assert Model.model_validate(entry["args"]["manifest"]) == written


def test_what_only_routing_reads_of_a_model_does_not_load_it_again() -> None:
    capabilities = {"endpoints": ["chat/completions"], "contextWindow": 4096, "modalities": ["image"], "tools": True}
    assert model_entry(model(capabilities=capabilities, replicaHourPrice=1.5)) == model_entry(model())
    assert model_entry(model(engineArgs={"max_num_seqs": 4})) != model_entry(model())


def test_what_only_routing_reads_of_a_provider_does_not_start_its_proxy_again() -> None:
    other = {"name": "m", "price": {"input": 3, "output": 4}, "capabilities": {"tools": False}}
    before = provider_entry(provider(type="simulated"))
    assert provider_entry(provider(type="simulated", models=[other], limits={"rpm": 5, "tpm": 6})) == before
    assert provider_entry(provider(type="simulated", limits={"concurrency": 5})) != before


def test_providers_come_first_and_their_keys_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_KEY", "sk-secret")
    written = provider(type="openai", credentials={"env": "ACME_KEY"})
    entries = applications([model()], [written])
    assert [entry["name"] for entry in entries] == ["provider-acme", "model-faq"]
    assert "sk-secret" not in repr(entries)
    read = Provider.model_validate(entries[0]["args"]["manifest"])
    assert (read.spec.type, read.spec.credentials) == ("openai", written.spec.credentials)


def test_only_simulated_providers_are_sent_to_the_simulated_upstream() -> None:
    url = "http://127.0.0.1:9/v1"
    assert provider_entry(provider(type="simulated"), simulated_url=url)["args"]["simulated_url"] == url
    real = provider(type="openai", credentials={"env": "ACME_KEY"})
    assert "simulated_url" not in provider_entry(real, simulated_url=url)["args"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"source": "file:///no/such/folder"}, "source /no/such/folder does not exist"),
        ({"resources": {"cpu": 64}}, "a replica needs 64 CPUs, and this machine has 2"),
        ({"resources": GPU}, "and this machine has"),
        ({"source": "hf://organisation/name"}, None),
    ],
)
def test_what_cannot_run_here_is_known_at_once(spec: dict[str, Any], message: str | None) -> None:
    why = refusal(model_entry(model(**spec)), {"CPU": 2.0})
    assert (why is None) if message is None else (why is not None and message in why)


def test_planning_and_the_client_import_neither_ray_nor_vllm() -> None:
    modules = (
        "meritorder.deployments.local.cluster, meritorder.deployments.local.preflight, meritorder.deployments.hosted"
    )
    check = f"import sys, {modules}; sys.exit(any(name in sys.modules for name in ('ray', 'vllm', 'torch')))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
