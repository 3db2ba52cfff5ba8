"""Serve a checkpoint: vLLM under Ray Serve, reached over the OpenAI protocol on loopback.

Floor 2; with `serve_apps/vlm.py` the only home of vLLM and `ray.serve.llm`. Start-up is mostly imports: every process
that loads vLLM spends about 11 CPU seconds on them, so what is tuned here is how many such processes start one after
the other.
"""

import asyncio
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medq_ray import config, console
from medq_ray.images import data_url
from medq_ray.model.chat import Client, Endpoint, EndpointError, Sampling
from medq_ray.model.prompts import messages
from medq_ray.model.tiny import embedded_checkpoint
from medq_ray.serving import start_ray, start_serve

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.llm import LLMConfig

HUB = "hf-hub:"
CHECKPOINT_FILES = ["*.json", "*.jinja", "*.safetensors", "*.txt", "*.model"]
"""Of a hub repository: not its pictures, nor the same weights in another format."""
POLL = 0.25
"""Seconds between two looks at an engine that starts."""


def resolve_checkpoint(name: str) -> Path:
    """The folder of a checkpoint: 'embedded' is the one shipped with the package, 'hf-hub:ORG/NAME' one of the Hugging
    Face hub, which is asked for it unless HF_HUB_OFFLINE=1 is set; what it has sent before is not sent again.

    Raises ValueError when the folder is no Hugging Face checkpoint or the hub does not give one.
    """
    if name.startswith(HUB):
        folder = fetch_checkpoint(name.removeprefix(HUB))
    else:
        folder = embedded_checkpoint() if name == "embedded" else Path(name)
    if not (folder / "config.json").is_file():
        hint = f"the folder of a Hugging Face checkpoint, or {HUB}ORG/NAME for one of the hub"
        raise ValueError(f"{folder} has no config.json: give {hint}")
    return folder


def fetch_checkpoint(repository: str) -> Path:
    """The folder in the local cache with all files of a hub repository that a checkpoint needs, fetched where they are
    missing. Raises ValueError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=CHECKPOINT_FILES))
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"checkpoint {HUB}{repository} is not all in the cache, and the hub cannot be reached: run this once where "
            "it can, or name the folder of a copy"
        ) from error
    except (OSError, HFValidationError) as error:  # HTTP errors are OSErrors here
        raise ValueError(f"checkpoint {HUB}{repository} cannot be fetched: {str(error).splitlines()[0]}") from error


def resolve_device(device: str) -> str:
    """'cpu' or 'gpu'; 'auto' takes a GPU if the running Ray has one or, where none runs yet (`serve run` and `serve
    build` call builders before), if this machine has one."""
    if device != "auto":
        return device
    import ray

    if ray.is_initialized():
        return "gpu" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"
    return "gpu" if Path("/dev/nvidia0").exists() else "cpu"


class Replica:
    """What Serve runs: Ray's LLM server and vLLM's own OpenAI app behind it, in one process.

    `ray.serve.llm.build_openai_app` would put a second process with an ingress before it, and would make the driver
    import vLLM too: two times 11 CPU seconds at each start and 2.4 GB. Nothing of vLLM is imported before the replica
    is.
    """

    async def __init__(self, checkpoint: str, name: str, device: str, engine: config.Engine):
        if device == "cpu":
            preload_engine()
        from ray.serve.llm.deployment import LLMServer

        self.server = LLMServer.sync_init(llm_config(checkpoint, name, device, engine))
        await self.server.start()

    async def __serve_build_asgi_app__(self) -> Any:
        return await self.server.__serve_build_asgi_app__()

    async def check_health(self) -> None:
        await self.server.check_health()


def build(checkpoint: Path, name: str, engine: config.Engine) -> "Application":
    """The Serve application of a checkpoint folder, one replica, as model `name`."""
    from ray import serve

    device = resolve_device(engine.device)
    environment = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "",  # compiled modules are kept: importing vLLM takes 11 CPU seconds, else 27
    }
    if device == "cpu":
        environment["RAYLLM_VLLM_ENGINE_CLS"] = f"{__name__}.local_engine"
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="vlm",
        num_replicas=1,
        max_ongoing_requests=10_000,  # vLLM queues
        max_constructor_retry_count=1,  # a checkpoint that fails once fails again
        health_check_period_s=2.0,  # three failures in a row replace a replica whose engine died: 6 s, not 30
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=5.0,
        placement_group_bundles=[{"CPU": 1, device.upper(): 1}],
        ray_actor_options={"num_cpus": 1, "runtime_env": {"env_vars": environment}},
    )
    return deployment.bind(str(checkpoint.resolve()), name, device, engine)


def llm_config(checkpoint: str, name: str, device: str, engine: config.Engine) -> "LLMConfig":
    """How vLLM runs a checkpoint; called in the replica."""
    from ray.serve.llm import LLMConfig

    arguments: dict[str, Any] = {
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "limit_mm_per_prompt": {"image": 2, "video": 0},  # with videos allowed, the profiling run makes one
        "dtype": "bfloat16",
        "enable_prompt_tokens_details": True,  # how many tokens of a prompt are the image's
        "enable_prefix_caching": False,  # an image comes first in a prompt: prefixes are hardly ever shared
    }
    if device == "cpu":
        arguments |= {
            "enforce_eager": True,  # compiling takes longer than a demo asks
            "mm_processor_cache_gb": 0.25,  # decoded images, kept in two processes; the default of 4 would fill up
            "kv_cache_memory_bytes": engine.kv_cache_bytes,
            # A seeded request whose prompt is split over two steps rewinds its generator, which torch cannot do on a
            # CPU: "CPU Generator does not use offset" kills the engine. So prompts are never split.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(2048, engine.max_model_len),
        }
    return LLMConfig(
        model_loading_config={"model_id": name, "model_source": checkpoint},
        accelerator_config={"kind": device},
        engine_kwargs=arguments,
        experimental_configs={"stream_batching_interval_ms": 0},
        log_engine_metrics=False,
    )


def preload_engine() -> None:
    """Import vLLM's engine in a fork server while this process imports its own half, on the other core; the engine's
    process is then forked from there and starts with its 11 seconds of imports behind it."""
    from multiprocessing import forkserver

    forkserver.set_forkserver_preload(["medq_ray.model.tether", "vllm.v1.engine.core", "vllm.v1.worker.cpu_worker"])
    forkserver.ensure_running()


def local_engine(settings: "LLMConfig") -> Any:
    """Ray's vLLM engine for one replica on a CPU, started in two processes that import vLLM side by side instead of
    five that do it one after the other. Our choice; each step is what Ray or vLLM would do on a cluster of GPUs:

    - no task that downloads the checkpoint: it is a local folder;
    - no process to inspect the model class: it is loaded here;
    - no worker process between engine and model: the executor runs inside the engine's process;
    - the engine's process comes from `preload_engine` instead of a fresh interpreter.

    Called in the replica by Ray through RAYLLM_VLLM_ENGINE_CLS, its hook for engine classes.
    """
    import multiprocessing

    import vllm.v1.engine.utils
    from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
    from vllm import ModelRegistry

    class LocalEngine(VLLMEngine):
        def _prepare_engine_config(self, context: Any) -> tuple:
            arguments, frontend, engine = super()._prepare_engine_config(context)
            engine.parallel_config.distributed_executor_backend = "uni"
            return arguments, frontend, engine

    folder = Path(settings.model_loading_config.model_source)
    for architecture in json.loads((folder / "config.json").read_text())["architectures"]:
        if architecture in ModelRegistry.models:
            ModelRegistry.register_model(architecture, ModelRegistry.models[architecture].load_model_cls())
    vllm.v1.engine.utils.get_mp_context = lambda: multiprocessing.get_context("forkserver")
    settings.get_or_create_callback().ctx.run_init_node = False
    return LocalEngine(settings)


@contextmanager
def serve_checkpoint(checkpoint: Path, name: str, engine: config.Engine, app: str | None = None) -> Iterator[str]:
    """Serve `checkpoint` as model `name` while the context lasts; yields the base URL.

    `app` (default: `name`) is the Serve application and its route; two runs on one Ray need different ones.
    Needs one free logical CPU (or a GPU) of Ray, which starts where none runs. Serve itself stays up for the next
    checkpoint; leaving the context stops the engine and frees its memory. Raises ValueError for a port in use, and
    EndpointError (one line) when the engine is not up within `engine.start_timeout` or does not see images.
    """
    from ray import serve

    deadline = time.monotonic() + engine.start_timeout
    app = app or name
    start_ray()
    application = build(checkpoint, name, engine)
    base_url = f"{start_serve(engine.port)}/{app}/v1"
    try:
        start_app(application, app, deadline)
        timeout = max(1.0, deadline - time.monotonic())
        asyncio.run(check_image_tokens(Endpoint(base_url, name, timeout=timeout, retries=2, key_from="ENGINE_API_KEY")))
        yield base_url
    finally:
        serve.delete(app)


def start_app(app: "Application", name: str, deadline: float) -> None:
    """Deploy under /`name` and wait until the replica runs. Raises EndpointError when it fails or time is up."""
    import ray
    from ray import serve

    serve.run_many([serve.RunTarget(app, name=name, route_prefix=f"/{name}")], wait_for_applications_running=False)
    log = Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve"
    while (status := serve.status().applications[name]).status != "RUNNING":
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


async def check_image_tokens(endpoint: Endpoint) -> None:
    """One completion with an image and one without; also the engine's first, which is slow.

    Raises EndpointError when the image adds no tokens: the endpoint would answer every question blindly.
    """
    client = Client(endpoint)
    sampling = Sampling(n=1, max_tokens=1, logprobs=False)
    image = data_url(np.full((112, 112, 3), 128, np.uint8))
    text_only = [{"role": "user", "content": "Which?"}]
    try:
        with_image, without = await asyncio.gather(
            client.complete(messages([image], "Which?"), sampling), client.complete(text_only, sampling)
        )
    finally:
        await client.close()
    (one,), (none,) = with_image, without
    if error := one.error or none.error:
        raise EndpointError(f"{endpoint.base_url} refuses a first question: {error}")
    if None in (one.prompt_tokens, none.prompt_tokens) or one.prompt_tokens <= none.prompt_tokens:
        raise EndpointError(
            f"{endpoint.base_url} does not see images: {one.prompt_tokens} prompt tokens with one, "
            f"{none.prompt_tokens} without; serve a vision-language checkpoint"
        )


def serve_forever(checkpoint: Path, port: int, engine: config.Engine, name: str = "vlm") -> None:
    """Serve until Ctrl-C, printing the URL and how to ask; starts Ray where none runs. Raises as `serve_checkpoint`."""
    import ray

    if not ray.is_initialized():
        dashboard = None if os.environ.get("RAY_ADDRESS") else False
        ray.init(include_dashboard=dashboard, log_to_driver=False, logging_level="WARNING")
    console.say(f"starting the engine for {checkpoint}, about half a minute")
    with serve_checkpoint(checkpoint, name, engine.model_copy(update={"port": port})) as url:
        console.say(f"{checkpoint} answers at {url} as model {name!r}; Ctrl-C stops it. For example:")
        console.say(example(url, name))
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            console.say("stopping")


def example(url: str, name: str) -> str:
    """A shell command that asks about scan.png."""
    content = (
        '[{"type": "image_url", "image_url": {"url": "data:image/png;base64,\'$(base64 -w0 scan.png)\'"}}, '
        '{"type": "text", "text": "Describe the quality of this MRI image."}]'
    )
    body = f'{{"model": "{name}", "max_tokens": 48, "messages": [{{"role": "user", "content": {content}}}]}}'
    return f"curl -s {url}/chat/completions -H 'Content-Type: application/json' -d '{body}'"
