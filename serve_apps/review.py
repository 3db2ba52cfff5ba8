"""The review console on Ray Serve: `serve run serve_apps.review:build_app store=postgresql://HOST/DATABASE`.

`medq review serve` is the same without Ray. Its pages stand at '/': under a route prefix every reply says so. More than
one replica needs PostgreSQL, since a SQLite store is for one machine; each counts wrong logins in its own memory, so
that there may be as many times more of them.
"""

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, model_validator
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
    replicas: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _one_on_sqlite(self) -> "ReviewArgs":
        if self.replicas > 1 and "://" not in self.store:
            raise ValueError(f"replicas={self.replicas} needs PostgreSQL, since {self.store} is a file of one machine")
        return self


def build_app(args: ReviewArgs) -> "Application":
    """Builder for `serve run`, `serve build` and tests; plain dicts are accepted too. The store is opened where the
    replica runs. Raises pydantic's ValidationError (a ValueError) for an unknown or invalid argument."""
    chosen = ReviewArgs.model_validate(args)

    def build() -> "FastAPI":
        from medq_ray.review.console import console
        from medq_ray.review.store import Store

        return console(Store(chosen.store), Review(**chosen.model_dump(exclude={"store", "replicas"})))

    options = {"name": "ReviewConsole", "num_replicas": chosen.replicas, "max_ongoing_requests": 256}
    replica = serve.deployment(serve.ingress(build)(), **options, ray_actor_options={"num_cpus": 0})
    return replica.bind()
