"""What can be known to fail on this machine before 30 s are spent on it."""

from collections.abc import Mapping
from typing import Any

from meritorder.deployments.applications import is_model
from meritorder.deployments.plan import plan
from meritorder.deployments.sources import SourceError, check_folder
from meritorder.manifests.kinds import Model


def refusal(entry: Mapping[str, Any], resources: Mapping[str, float]) -> str | None:
    """Why the application of `entry` cannot run, in one sentence; None when nothing speaks against it.

    `resources` is all that this machine has, free or not, as Ray counts it: `{"CPU": 8.0, "GPU": 1.0,
    "accelerator_type:L4": 1.0}`.
    """
    if not is_model(entry):
        return None
    model = Model.model_validate(entry["args"]["manifest"])
    planned = plan(model)
    try:
        if model.spec.source.startswith("file://"):
            check_folder(planned.llm_config["model_loading_config"]["model_source"])
    except SourceError as error:
        return str(error)
    return _shortfall(planned.options["placement_group_bundles"], resources)


def _shortfall(bundles: list[Mapping[str, float]], resources: Mapping[str, float]) -> str | None:
    needed: dict[str, float] = {}
    for bundle in bundles:
        for name, amount in bundle.items():
            needed[name] = needed.get(name, 0) + amount
    for name, amount in needed.items():
        have = resources.get(name, 0)
        if have < amount:
            if name.startswith("accelerator_type:"):
                return f"a replica needs a GPU of type {name.partition(':')[2]}, and this machine has none"
            return f"a replica needs {amount:g} {name}s, and this machine has {have:g}"
    return None
