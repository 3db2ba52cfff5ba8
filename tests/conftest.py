"""Fixtures that are dear: one Ray, one vLLM and one stub endpoint for the whole test session."""

import os
from collections.abc import Iterator

import pytest
from running import Stub, running_stub

# As the Makefile does, for who calls pytest: a node of Ray dies unless its agents are there within 30 seconds, and where
# bytecode is not kept, starting it takes twice as much, on busy cores too much.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

LOGICAL_CPUS = 8
"""Ray is told of more CPUs than there are: Serve's actors and an engine wait most of the time."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, default=3000, help="how many hostile files tests/pool/test_fuzz.py ingests")


@pytest.fixture
def stub() -> Iterator[Stub]:
    with running_stub() as stub:
        yield stub


@pytest.fixture
def slow_stub() -> Iterator[Stub]:
    """Takes 0.2 s to answer, so that a run against it can be killed midway."""
    with running_stub("--latency", "0.2") as stub:
        yield stub


@pytest.fixture
def blind_stub() -> Iterator[Stub]:
    """Ignores images."""
    with running_stub("--blind", "drops") as stub:
        yield stub


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One local Ray."""
    import ray

    ray.init(num_cpus=LOGICAL_CPUS, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def vlm_endpoint(ray_local: None) -> Iterator[str]:
    """Base URL of one vLLM that serves the embedded base model as 'base'."""
    from medq_ray import config
    from medq_ray.model.deploy import serve_checkpoint
    from medq_ray.model.tiny import embedded_checkpoint

    with serve_checkpoint(embedded_checkpoint(), "base", config.Engine()) as url:
        yield url
