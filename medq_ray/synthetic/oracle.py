"""The simulated oracle, served for the length of a `with` block."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medq_ray import config
from medq_ray.synthetic.answers import SimulatedOracle
from medq_ray.synthetic.truth import load_truth


@contextmanager
def serve_oracle(
    world: Path, oracle: config.Oracle, seed: int, port: int = 0, app: str = "oracle", **outage: float
) -> Iterator[str]:
    """Serve the simulated oracle of a world with Ray Serve on loopback; yield its OpenAI base URL ('.../APP/v1').

    Ray and Serve are started if they are not running, and only `app`, a name that no other run on this
    Ray uses, is deleted on exit. outage: outage_after and outage_seconds of `OracleApp`. Raises ValueError for a world
    without truth, rates above 1 or a taken port.
    """
    from medq_ray.serving import running_app
    from medq_ray.synthetic.oracle_app import oracle_app

    rates = {"edit_rate": oracle.edit_rate, "reject_rate": oracle.reject_rate, "failure_rate": oracle.failure_rate}
    SimulatedOracle(load_truth(world), **rates, seed=seed)  # fails here, in one line, rather than in a replica
    application = oracle_app(str(Path(world).resolve()), **rates, seed=seed, latency=oracle.latency, **outage)
    with running_app(application, name=app, route_prefix=f"/{app}", port=port) as address:
        yield f"{address}/v1"
