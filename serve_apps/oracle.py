"""The simulated oracle as an app of its own.

    serve run serve_apps.oracle:build_app world=/path/to/world edit_rate=0.29 reject_rate=0.08
"""

from pydantic import BaseModel, ConfigDict, Field
from ray.serve import Application

from medq_ray.config import Oracle
from medq_ray.synthetic.oracle_app import oracle_app


class OracleArgs(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    world: str
    """A folder made by `medq synth`."""
    edit_rate: float = Field(Oracle().edit_rate, ge=0, le=1)
    reject_rate: float = Field(Oracle().reject_rate, ge=0, le=1)
    failure_rate: float = Field(Oracle().failure_rate, ge=0, lt=1)
    seed: int = Field(0, ge=0)
    latency: float = Field(Oracle().latency, ge=0)
    outage_after: int = Field(0, ge=0)
    """Answers after which it is out of order once; 0: never."""
    outage_seconds: float = Field(0.0, ge=0)


def build_app(args: OracleArgs) -> Application:
    """Builder for `serve run`, `serve build` and tests; plain dicts are accepted too. Raises pydantic's
    ValidationError (a ValueError) for an unknown or invalid argument."""
    return oracle_app(**OracleArgs.model_validate(args).model_dump())
