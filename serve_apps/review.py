"""The review console on Ray Serve: `serve run serve_apps.review:build_app store=postgresql://HOST/DATABASE`.

`medq review serve` is the same without Ray. Its pages stand at '/', so serve it without a route prefix. One replica: a
SQLite store is for one machine, and wrong logins are counted in the replica's memory.
"""

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from medq_ray.config import Review

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application


class ReviewArgs(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    store: str
    """A file for SQLite, or postgresql://USER:PASSWORD@HOST/DATABASE."""
    lease_minutes: float = Field(Review().lease_minutes, gt=0)
    patients_together: bool = Review().patients_together


def build_app(args: ReviewArgs) -> "Application":
    """Builder for `serve run`, `serve build` and tests; plain dicts are accepted too. The store is opened where the
    replica runs. Raises pydantic's ValidationError (a ValueError) for an unknown or invalid argument."""
    chosen = ReviewArgs.model_validate(args)

    def build() -> "FastAPI":
        from medq_ray.review.console import console
        from medq_ray.review.store import Store

        return console(Store(chosen.store), Review(**chosen.model_dump(exclude={"store"})))

    options = {"name": "ReviewConsole", "num_replicas": 1, "max_ongoing_requests": 256}
    replica = serve.deployment(serve.ingress(build)(), **options, ray_actor_options={"num_cpus": 0})
    return replica.bind()
