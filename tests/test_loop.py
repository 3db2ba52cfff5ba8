"""A run directory belongs to one process and one set of settings; the ledger keeps simulated costs apart."""

import subprocess
import sys

import pytest
import yaml
from ray.exceptions import RaySystemError

from medq_ray import loop, models, recipes
from medq_ray.artifacts import MANIFEST
from medq_ray.config import override
from medq_ray.ledger import Ledger
from medq_ray.loop import claimed
from medq_ray.model.chat import EndpointError
from medq_ray.serving import EngineError, free_port, ray_session, start_ray


def test_other_settings_are_refused_and_named(tmp_path):
    demo = recipes.build("demo")
    with claimed(tmp_path, override(demo, ["explore.budget=8"])):
        pass
    with claimed(tmp_path, demo):  # nothing was finished under the others
        (tmp_path / "world").mkdir()
        (tmp_path / "world" / MANIFEST).write_text("{}")
    with pytest.raises(ValueError, match=r"was made with explore.budget=\d+, not 7"):
        with claimed(tmp_path, override(demo, ["explore.budget=7"])):
            pass
    with claimed(tmp_path, override(demo, ["engine.concurrency=7"])):
        pass
    assert yaml.safe_load((tmp_path / "run.yaml").read_text())["recipe"] == "demo"


@pytest.mark.parametrize(
    ("assignment", "complaint"),
    [
        ("world.path={tmp}/typo", "typo"),
        ("engine.checkpoint={tmp}/typo", r"typo has no config\.json"),
        ("encoder.name=typo", "encoder.name='typo'"),
        ("encoder.name=local-dir:{tmp}", "open_clip_config.json"),
        ("oracle.model=gpt-4o", "needs oracle.base_url"),
        ("oracle.edit_rate=0.95", "exceed 1"),
        ("oracle.base_url=https://oracle.example/v1", "set OPENAI_API_KEY"),
        ("engine.base_url=https://engine.example/v1", "set ENGINE_API_KEY"),
    ],
)
def test_a_typo_is_told_before_anything_is_written(tmp_path, monkeypatch, assignment, complaint):
    for name in (models.ENGINE_KEY, models.ORACLE_KEY, models.JUDGE_KEY):
        monkeypatch.delenv(name, raising=False)
    chosen = override(recipes.build("demo"), [assignment.replace("{tmp}", str(tmp_path))])
    with pytest.raises((ValueError, EndpointError), match=complaint):
        loop.run(chosen, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_cluster_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # other tests may have started one
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    with pytest.raises(EngineError, match="no Ray to use at RAY_ADDRESS=127.0.0.1:.*unset RAY_ADDRESS") as caught:
        with ray_session(tmp_path / "log.txt"):
            raise AssertionError("there is no cluster")
    assert "\n" not in str(caught.value)


def test_what_dies_in_ray_is_one_line_with_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: True)  # nothing to start or stop
    with pytest.raises(EngineError, match="RaySystemError: .*line one line two; see .*log.txt, then run the same command again") as caught:
        with ray_session(tmp_path / "log.txt"):
            raise RaySystemError("line one\nline two")
    assert "\n" not in str(caught.value)


def test_ray_starts_when_it_is_needed_and_stops_with_the_outermost_session(tmp_path, monkeypatch):
    running: list[str] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: bool(running))
    monkeypatch.setattr("ray.init", lambda **settings: running.append(settings["address"]))
    monkeypatch.setattr("ray.shutdown", running.clear)
    with ray_session(tmp_path / "log.txt"):
        assert running == []
        with ray_session(tmp_path / "log.txt"):
            start_ray()
            start_ray()
        assert running == ["local"]
    assert running == []
    running.append("somebody else's")
    with ray_session(tmp_path / "log.txt"):
        start_ray()
    assert running == ["somebody else's"]


def test_two_runs_cannot_share_a_directory(tmp_path):
    code = (
        "import sys; from pathlib import Path; from medq_ray import loop, recipes\n"
        "with loop.claimed(Path(sys.argv[1]), recipes.build('demo')): pass"
    )
    with claimed(tmp_path, recipes.build("demo")):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode != 0 and "is in use by another run" in done.stderr


def test_simulated_costs_are_kept_apart(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.add(step="iter-00/annotate", what="oracle output", amount=5, unit="tokens", simulated=True)
    ledger.add(step="iter-00/annotate", what="oracle output", amount=7, unit="tokens")
    ledger.add(step="iter-01/annotate", what="oracle output", amount=1, unit="tokens")
    ledger.add(step="iter-00/annotate", what="oracle output", amount=7, unit="tokens")  # done again after a kill
    assert ledger.total("iter-00/") == {"oracle output (tokens)": 7, "oracle output (tokens, simulated)": 5}
    assert ledger.total() == {"oracle output (tokens)": 8, "oracle output (tokens, simulated)": 5}
