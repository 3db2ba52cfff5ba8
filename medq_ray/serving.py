"""Ray for a run, and its one Ray Serve: started once, when first needed, on loopback, shared by every app of ours.

Floor 1, because the model under training (floor 2) and the simulated oracle (floor 2) are served side by side in one
session: a cluster has one Serve and one HTTP proxy, so apps differ by name and route prefix, never by port.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.serve import Application

LOOPBACK = "127.0.0.1"


class EngineError(Exception):
    """Something that Ray runs for us died: one line with the reason and where its log is."""


PATIENCE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60"}
"""On two busy cores a proxy can take longer to start than the 15 seconds after which Serve would replace it."""


def one_line(error: object, most: int = 300) -> str:
    """The end of an error's text without line breaks, at most `most` characters: what it says last says why."""
    return " ".join(str(error).split())[-most:]


_open = 0
"""Sessions of this process that are open, one within the other: the outermost stops what it or they have started."""


@contextmanager
def ray_session(log: Path) -> Iterator[None]:
    """Ray for as long as this lasts: the cluster in RAY_ADDRESS, or the job's, or Ray on this machine from when it is
    first needed (`start_ray`): it takes five CPU seconds, which a resumed run may have no use for.

    Raises EngineError for a cluster that is not there and for what dies in Ray meanwhile; `log` has the rest.
    """
    global _open
    import ray

    ours = not _open and not ray.is_initialized()
    if ours and os.environ.get("RAY_ADDRESS"):
        start_ray()
    _open += 1
    try:
        yield
    except ray.exceptions.RayError as error:
        what = f"{type(error).__name__}: {one_line(error)}"
        raise EngineError(f"{what}; see {log}, then run the same command again") from error
    finally:
        _open -= 1
        if ours:
            ray.shutdown()


def start_ray() -> None:
    """Attach to the cluster in RAY_ADDRESS or start Ray on this machine, unless this process has one. Raises
    EngineError for a cluster that is not there."""
    import ray
    from joblib import cpu_count

    if ray.is_initialized():
        return
    if address := os.environ.get("RAY_ADDRESS"):
        host, _, port = address.rpartition(":")
        try:
            if port.isdigit() and "/" not in host:  # Ray itself tries for two minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(log_to_driver=True)
        except (OSError, RuntimeError, ray.exceptions.RayError) as error:
            reason = f"no Ray to use at RAY_ADDRESS={address} ({one_line(error)})"
            raise EngineError(f"{reason}: start it, or unset RAY_ADDRESS") from error
    else:
        # The controller, proxy, ingress and engine of one model want about three logical CPUs, Ray Data and the oracle
        # more; they mostly wait for each other, so declare more logical CPUs than there are cores.
        ray.init(address="local", num_cpus=max(8, cpu_count()), include_dashboard=False, log_to_driver=True)


def free_port() -> int:
    """A TCP port on loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def start_serve(port: int = 0) -> str:
    """Start Serve on loopback unless this cluster has one; return its address, 'http://127.0.0.1:PORT'.

    `port` 0 takes the running Serve's or a free one. Raises ValueError when the port is taken by another program, or
    Serve already listens on another one. Starts Ray where none runs.
    """
    from ray import serve
    from ray.serve.context import _get_global_client  # no public call tells the port of a running Serve

    start_ray()
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is not None:
        running = client.http_config.port
        if port not in (0, running):
            raise ValueError(f"engine.port={port}: Ray Serve already listens on {running}; set that port or 0")
        return f"http://{LOOPBACK}:{running}"
    if port:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT is not "in use"
            try:
                probe.bind((LOOPBACK, port))
            except OSError as error:
                advice = "give another one (engine.port, or --port of a command), or 0 for a free one"
                raise ValueError(f"port {port} is in use; {advice}") from error
    port = port or free_port()
    serve.start(
        http_options={"host": LOOPBACK, "port": port}, controller_options={"runtime_env": {"env_vars": PATIENCE}}
    )
    return f"http://{LOOPBACK}:{port}"


@contextmanager
def running_app(application: "Application", *, name: str, route_prefix: str, port: int = 0) -> Iterator[str]:
    """Run one app beside whatever else is served; yield its address, 'http://127.0.0.1:PORT/PREFIX' without a slash
    at the end. On exit only this app is deleted. Raises like `start_serve`, and EngineError if the app cannot start.
    """
    from ray import serve

    address = start_serve(port)
    try:
        try:
            serve.run(application, name=name, route_prefix=route_prefix)
        except RuntimeError as error:
            raise EngineError(f"app {name} cannot start: {one_line(error)}") from error
        yield address + route_prefix.rstrip("/")
    finally:
        serve.delete(name)
