"""cluster.yaml is a file that `ray up` of the pinned version accepts, and promises what the README says of it."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cluster() -> dict:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_it(cluster):
    from ray.autoscaler._private.util import validate_config

    validate_config(cluster)  # Ray's own JSON schema and its own consistency checks


def test_ray_refuses_a_wrong_one(cluster):
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(ValidationError):
        validate_config({**cluster, "head_node": "head"})


def test_head_computes_nothing_and_workers_start_from_zero(cluster):
    types = cluster["available_node_types"]
    head = types[cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    workers = {name: node for name, node in types.items() if name != cluster["head_node_type"]}
    assert all(node["min_workers"] == 0 < node["max_workers"] for node in workers.values())
    assert cluster["max_workers"] == sum(node["max_workers"] for node in workers.values())


def test_one_gpu_type_of_eight_a100(cluster):
    gpus = [node for node in cluster["available_node_types"].values() if node["resources"].get("GPU")]
    assert [node["node_config"]["InstanceType"] for node in gpus] == ["p4d.24xlarge"]
    assert gpus[0]["resources"]["GPU"] == 8


def test_nodes_install_what_the_project_pins_and_talk_with_the_token(cluster):
    commands = "\n".join(cluster["setup_commands"])
    assert "requirements-cpu.lock" in commands and "'.[gpu]'" in commands
    assert "RAY_AUTH_MODE=token" in commands
    assert any(target.endswith(".ray/auth_token") for target in cluster["file_mounts"])
    assert "--dashboard-host=127.0.0.1" in "\n".join(cluster["head_start_ray_commands"])
