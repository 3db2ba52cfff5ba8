"""What the interface says of itself is true of every request that fits it, and of those that do not: by schemathesis."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from reading_room import KINDS, draw, piece
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance, response_schema_conformance, status_code_conformance,
)  # fmt: skip
from test_console_api import Room

EXAMPLES = 12
"""Of each operation, person and mode."""
CHECKS = [checks.not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]

FEW = settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
               suppress_health_check=list(HealthCheck))  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("pictures"), size=56)


@pytest.fixture
def room(tmp_path, pictures):
    pieces = [piece(n, KINDS[n % 5], "mri", pictures, reads=1 + n % 2) for n in range(40)]
    made = Room(tmp_path / "review.db", pieces)
    yield made
    made.store.close()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["fits", "does not fit"])
@pytest.mark.parametrize("name", ["ann", "lea"])
def test_no_request_breaks_the_interface(room, name, mode):
    """Of a reviewer and of a lead, on their own leases and items half of the time."""
    client, statuses = room.client(name), set()
    headers = {"authorization": f"Bearer {room.tokens[name]}"}

    def holds(case: schemathesis.Case) -> None:
        item = client.post("/api/next").json() or {}
        for parameter, made in (case.path_parameters or {}).items():
            if isinstance(made, int) and made % 2:
                case.path_parameters[parameter] = item.get(parameter, made)
        statuses.add(case.call_and_validate(headers=headers, checks=CHECKS).status_code)

    interface = schemathesis.openapi.from_asgi("/api/openapi.json", room.app)
    for found in interface.get_all_operations():
        try:
            cases = found.ok().as_strategy(generation_mode=mode)
            FEW(given(cases)(holds))()
        except Unsatisfiable:  # what has no parameter and no body always fits
            assert mode == GenerationMode.NEGATIVE
    assert {200, 400} <= statuses
