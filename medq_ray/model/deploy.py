"""Serve a checkpoint: vLLM under Ray Serve, reached over the OpenAI protocol on loopback.

Floor 2; with `serve_apps/vlm.py` the only home of vLLM and `ray.serve.llm`. Start-up is mostly imports: every process
that loads vLLM spends about 11 CPU seconds on them, so what is tuned here is how many such processes start one after
the other.
"""

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medq_ray import config
from medq_ray.images import data_url
from medq_ray.model.chat import Client, Endpoint, EndpointError, Sampling
from medq_ray.model.prompts import messages

if TYPE_CHECKING:
    from ray.serve.llm import LLMConfig

HOST = "127.0.0.1"
APP = "vlm"
POLL = 0.25
"""Seconds between two looks at an engine that starts."""


def resolve_device(device: str) -> str:
    """'cpu' or 'gpu'; 'auto' takes a GPU if the running Ray has one."""
    if device != "auto":
        return device
    import ray

    return "gpu" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"


def llm_config(checkpoint: Path, name: str, engine: config.Engine) -> "LLMConfig":
    """How a checkpoint folder is served under the model name `name`, on one replica.

    Raises ValueError when the folder is no Hugging Face checkpoint.
    """
    from ray.serve.llm import LLMConfig

    if not (checkpoint / "config.json").is_file():
        raise ValueError(f"{checkpoint} is no checkpoint: config.json is missing; give a Hugging Face checkpoint folder")
    device = resolve_device(engine.device)
    environment = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    arguments: dict[str, Any] = {
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "limit_mm_per_prompt": {"image": 2, "video": 0},  # with videos allowed, the profiling run makes one
        "dtype": "bfloat16",
        "enable_prefix_caching": False,  # an image comes first in a prompt: prefixes are hardly ever shared
    }
    if device == "cpu":
        environment |= {"RAYLLM_VLLM_ENGINE_CLS": f"{__name__}.local_engine"}
        arguments |= {
            "enforce_eager": True,  # compiling takes longer than a demo asks
            "kv_cache_memory_bytes": engine.kv_cache_bytes,
        }
    return LLMConfig(
        model_loading_config={"model_id": name, "model_source": str(checkpoint.resolve())},
        accelerator_config={"kind": device},
        engine_kwargs=arguments,
        runtime_env={"env_vars": environment},
        deployment_config={
            "num_replicas": 1,
            "max_constructor_retry_count": 1,  # a checkpoint that fails once fails again
            "graceful_shutdown_wait_loop_s": 0.1,
            "graceful_shutdown_timeout_s": 5.0,
        },
        experimental_configs={"stream_batching_interval_ms": 0},
        log_engine_metrics=False,
    )


def local_engine(settings: "LLMConfig") -> Any:
    """Ray's vLLM engine with two processes fewer to start, each of which would import vLLM anew: none that downloads
    the checkpoint, which is a local folder, and none between engine and model (on a CPU Ray always asks for vLLM's
    multi-process executor; the model of one replica runs as well inside the engine's own process). Our choice.

    Called in the replica by Ray through RAYLLM_VLLM_ENGINE_CLS, its hook for engine classes.
    """
    from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine

    class LocalEngine(VLLMEngine):
        def _prepare_engine_config(self, context: Any) -> tuple:
            arguments, frontend, engine = super()._prepare_engine_config(context)
            engine.parallel_config.distributed_executor_backend = "uni"
            return arguments, frontend, engine

    settings.get_or_create_callback().ctx.run_init_node = False
    return LocalEngine(settings)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def usable_port(port: int) -> int:
    """`port`, or a free one for 0. Raises ValueError when something listens on it."""
    if port == 0:
        return free_port()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ValueError(
                f"port {port} is in use: choose another with --set engine.port=..., or 0 for a free one"
            ) from error
    return port


@contextmanager
def serve_checkpoint(checkpoint: Path, name: str, engine: config.Engine) -> Iterator[str]:
    """Serve `checkpoint` as model `name` while the context lasts; yields the base URL.

    Needs a running Ray with 3 free logical CPUs (or a GPU). One checkpoint at a time: leaving the context stops the
    engine and frees its memory. Raises ValueError for a port in use or a folder that is no checkpoint, and
    EndpointError (one line) when the engine is not up within `engine.start_timeout` or does not see images.
    """
    from ray import serve

    deadline = time.monotonic() + engine.start_timeout
    port = usable_port(engine.port)
    serve.start(proxy_location="HeadOnly", http_options={"host": HOST, "port": port})
    try:
        base_url = f"http://{HOST}:{port}/v1"
        start_app(llm_config(checkpoint, name, engine), deadline)
        asyncio.run(check_sight(Endpoint(base_url, name, timeout=max(1.0, deadline - time.monotonic()), retries=2)))
        yield base_url
    finally:
        serve.shutdown()


def start_app(settings: "LLMConfig", deadline: float) -> None:
    """Deploy and wait until all replicas run. Raises EndpointError when they fail or the deadline passes."""
    import ray
    from ray import serve
    from ray.serve.llm import build_openai_app

    app = build_openai_app({"llm_configs": [settings], "ingress_deployment_config": {"num_replicas": 1}})
    serve.run_many([serve.RunTarget(app, name=APP, route_prefix="/")], wait_for_applications_running=False)
    log = Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve"
    while (status := serve.status().applications[APP]).status != "RUNNING":
        if status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise EndpointError(f"the engine failed: {_last_line(status)}; its log is in {log}")
        if time.monotonic() > deadline:
            raise EndpointError(f"the engine is not up in time: raise engine.start_timeout or see {log}")
        time.sleep(POLL)


def _last_line(status: Any) -> str:
    """The end of the first failed deployment's message, which is a traceback."""
    messages = [deployment.message for deployment in status.deployments.values() if deployment.message]
    lines = (messages or [status.message or "no reason given"])[0].strip().splitlines()
    return lines[-1][:300]


async def check_sight(endpoint: Endpoint) -> None:
    """One completion with an image and one without; also the engine's first, which is slow.

    Raises EndpointError when the image adds no tokens: the endpoint would answer every question blindly.
    """
    client = Client(endpoint)
    sampling = Sampling(n=1, max_tokens=1, logprobs=False)
    image = data_url(np.full((112, 112, 3), 128, np.uint8))
    text_only = [{"role": "user", "content": "Which?"}]
    try:
        with_image, without = await asyncio.gather(
            client.complete(messages(image, "Which?"), sampling), client.complete(text_only, sampling)
        )
    finally:
        await client.close()
    for reply in (with_image, without):
        if reply.choices[0].error:
            raise EndpointError(f"{endpoint.base_url} refuses a first question: {reply.choices[0].error}")
    if None in (with_image.prompt_tokens, without.prompt_tokens) or with_image.prompt_tokens <= without.prompt_tokens:
        raise EndpointError(
            f"{endpoint.base_url} does not see images: {with_image.prompt_tokens} prompt tokens with one, "
            f"{without.prompt_tokens} without; serve a vision-language checkpoint"
        )
