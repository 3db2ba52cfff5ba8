"""Serving: a real vLLM on a CPU that sees images, comes up a second time, and says in one line why it does not."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import psutil
import pytest

from medq_ray import config
from medq_ray.images import data_url
from medq_ray.model.chat import Choice, Client, Endpoint, EndpointError, Sampling
from medq_ray.model.deploy import check_image_tokens, resolve_checkpoint, serve_checkpoint
from medq_ray.model.prompts import messages
from medq_ray.model.tiny import embedded_checkpoint

PROMPT = "Is the quality of this MRI image impaired?\nA. Yes\nB. No\nAnswer with the letter."
ENGINE = "VLLM::EngineCore"


def ask(url: str, model: str, pixels: np.ndarray, sampling: Sampling) -> list[Choice]:
    async def once() -> list[Choice]:
        client = Client(Endpoint(url, model, retries=0))
        try:
            return await client.complete(messages([data_url(pixels)], PROMPT), sampling)
        finally:
            await client.close()

    return asyncio.run(once())


def engines() -> int:
    return sum(ENGINE in " ".join(child.cmdline()) for child in psutil.Process().children(recursive=True))


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path} has no config\.json"):
        resolve_checkpoint(str(tmp_path))


def test_embedded_is_the_shipped_checkpoint(tmp_path):
    assert resolve_checkpoint("embedded") == embedded_checkpoint()
    (tmp_path / "config.json").write_text("{}")
    assert resolve_checkpoint(str(tmp_path)) == tmp_path


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def test_a_checkpoint_of_the_hub_that_is_not_here_is_one_line(hub_cache):
    with pytest.raises(ValueError, match=r"^checkpoint hf-hub:org/model is not all in the cache.*copy$"):
        resolve_checkpoint("hf-hub:org/model")
    with pytest.raises(ValueError, match=r"^checkpoint hf-hub:a model cannot be fetched: .*'a model'\.$"):
        resolve_checkpoint("hf-hub:a model")


def test_a_checkpoint_of_the_hub_that_is_here_is_used_without_a_network(hub_cache):
    stored = hub_cache / "models--org--model"
    snapshot = stored / "snapshots" / "0123"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text("0123")
    shutil.copytree(embedded_checkpoint(), snapshot)
    assert resolve_checkpoint("hf-hub:org/model") == snapshot


def test_a_missing_folder_is_never_asked_of_the_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: pytest.fail("the hub was asked"))
    with pytest.raises(ValueError, match=r"org/model has no config\.json: give .* hf-hub:ORG/NAME"):
        resolve_checkpoint("org/model")


def test_an_endpoint_that_sees_passes_the_check(stub):
    asyncio.run(check_image_tokens(Endpoint(stub.url, "m")))


def test_a_blind_endpoint_is_refused(blind_stub):
    with pytest.raises(EndpointError, match="does not see images"):
        asyncio.run(check_image_tokens(Endpoint(blind_stub.url, "m")))


@pytest.mark.engine
def test_vllm_answers_five_times_with_logprobs_and_counts_image_tokens(vlm_endpoint):
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
    sampling = Sampling(n=5, temperature=1.0, max_tokens=8)
    reply = ask(vlm_endpoint, "base", first, sampling)
    assert len(reply) == 5 and all(choice.error == "" for choice in reply)
    assert all(choice.entropy > 0 and choice.tokens >= 1 for choice in reply)
    (image,) = {choice.image_tokens for choice in reply}
    assert 16 <= image <= 18 < reply[0].prompt_tokens  # 16 patches, with the marks around them where they count
    greedy = Sampling(n=1, temperature=0.0, max_tokens=8)
    entropies = [ask(vlm_endpoint, "base", image, greedy)[0].entropy for image in (first, first, second)]
    assert entropies[0] == pytest.approx(entropies[1], abs=1e-3) and entropies[0] != entropies[2]


@pytest.mark.engine
def test_an_unknown_model_and_a_long_prompt_are_told_apart(vlm_endpoint):
    image = np.zeros((112, 112, 3), np.uint8)
    with pytest.raises(EndpointError, match="HTTP 404; check the base URL and the model name"):
        ask(vlm_endpoint, "another", image, Sampling())
    refused = ask(vlm_endpoint, "base", image, Sampling(max_tokens=100_000))
    assert refused[0].error.startswith("HTTP 400")


@pytest.mark.engine
def test_a_second_checkpoint_is_served_and_leaves_nothing_behind(vlm_endpoint, tmp_path):
    shutil.copytree(embedded_checkpoint(), tmp_path / "second")
    before = engines()
    with serve_checkpoint(tmp_path / "second", "second", config.Engine()) as url:
        assert engines() == before + 1
        assert ask(url, "second", np.zeros((112, 112, 3), np.uint8), Sampling())[0].error == ""
    assert engines() == before
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{url}/models")
    assert urllib.request.urlopen(f"{vlm_endpoint}/models").status == 200


@pytest.mark.engine
def test_an_engine_that_cannot_start_is_one_line_with_its_log(ray_local, tmp_path):
    shutil.copytree(embedded_checkpoint(), tmp_path / "broken")
    os.truncate(tmp_path / "broken" / "model.safetensors", 1000)
    with pytest.raises(EndpointError) as caught, serve_checkpoint(tmp_path / "broken", "broken", config.Engine()):
        pass
    line = str(caught.value)
    assert "\n" not in line and "the engine failed" in line and "its log is in" in line


@pytest.mark.engine
def test_a_port_in_use_is_named_before_anything_starts():
    script = (
        "import ray, sys; from medq_ray import config; from medq_ray.model import deploy\n"
        "ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)\n"
        "with deploy.serve_checkpoint(deploy.embedded_checkpoint(), 'm', config.Engine(port=int(sys.argv[1]))): pass"
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run([sys.executable, "-c", script, str(port)], capture_output=True, text=True, timeout=120)
    assert f"ValueError: port {port} is in use" in done.stderr and done.returncode == 1


@pytest.mark.engine
def test_a_killed_driver_leaves_no_engine_behind():
    script = (
        "import ray, time; from medq_ray import config; from medq_ray.model import deploy\n"
        "ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)\n"
        "with deploy.serve_checkpoint(deploy.embedded_checkpoint(), 'm', config.Engine()):\n"
        "    print('up', flush=True); time.sleep(600)"
    )
    driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert driver.stdout.readline() == b"up\n"
    children = psutil.Process(driver.pid).children(recursive=True)
    engine = [process for process in children if ENGINE in " ".join(process.cmdline())]
    assert len(engine) == 1
    driver.kill()
    driver.communicate()
    _, alive = psutil.wait_procs(engine, timeout=60)
    assert alive == []
