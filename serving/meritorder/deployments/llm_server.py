"""`ray.serve.llm` without the processes that this project has no use for. Importing it imports vLLM (8 s)."""

from collections.abc import Mapping
from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.serve.llm import LLMConfig, LLMServer


async def start_server(llm_config: Mapping[str, Any]) -> Any:
    """An `LLMServer` whose engine is loaded. `llm_config` are the keyword arguments of `LLMConfig`."""
    server: Any = QuietServer.sync_init(LLMConfig(**llm_config))
    await server.start()
    return server


class QuietServer(LLMServer):
    async def _start_engine(self) -> None:
        # The original then waits for an actor that collects usage statistics: one more process, one more
        # import of `ray.serve.llm`, 4 s, even where statistics are off.
        engine: Any = self.engine
        await engine.start()


class SkipNodeInit(CallbackBase):
    """Leaves out the download task, which imports vLLM once more, only to copy from object stores.

    For a folder there is nothing to fetch, and for `hf://` vLLM fetches by itself, at the given revision.
    """

    async def on_before_node_init(self) -> None:
        self.ctx.run_init_node = False
