"""Curves and proposals from reviewed samples, and what the command prints."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from medq_ray import cli
from medq_ray.annotate.calibrate import Reviewed, curve, outcome, propose, reviewed, reviewed_in, routes_of
from medq_ray.artifacts import read_table, write_json, write_table
from medq_ray.schema import ANNOTATION, QUESTION, VERDICT


def samples(n: int = 2000, seed: int = 0) -> Reviewed:
    """An oracle that errs in 30 % and a model that errs the more the less sure it is; both choose between two."""
    rng = np.random.default_rng(seed)
    entropy = rng.random(n)
    oracle, own = rng.random(n) < 0.3, rng.random(n) < 0.5 * entropy
    return Reviewed(entropy, (oracle == own).astype(float), np.zeros(n, bool), oracle, own, np.ones(n))


def test_an_outcome_is_what_the_routing_would_make_of_the_samples():
    found = samples(400)
    point = outcome(found, 0.5, 0.7)
    experts = wrong = 0
    for entropy, delta, theirs, mine in zip(found.entropy, found.delta, found.oracle_wrong, found.self_wrong, strict=True):
        if entropy >= 0.5:
            wrong += theirs
        elif delta < 0.7:
            experts += 1
        else:
            wrong += mine
    assert (point["expert_share"], point["label_error"]) == pytest.approx((experts / 400, wrong / 400))
    assert point["ci95"][0] < point["label_error"] < point["ci95"][1]


def test_more_experts_never_mean_more_error_and_targets_are_met():
    points = curve(samples())
    errors = [point["label_error"] for point in points]
    assert errors == sorted(errors, reverse=True) and errors[0] == pytest.approx(0.3, abs=0.03)
    chosen = propose(points, experts=0.18, error=None)
    assert 0.16 < chosen["expert_share"] <= 0.18 and chosen["label_error"] < 0.2
    cheap = propose(points, experts=None, error=0.1)
    assert cheap["label_error"] <= 0.1 and not any(
        point["label_error"] <= 0.1 and point["expert_share"] < cheap["expert_share"] for point in points)  # fmt: skip
    with pytest.raises(ValueError, match="no thresholds have a label error of 0;"):
        propose(curve(samples()), experts=None, error=0.0)


def test_a_proposal_holds_on_samples_that_it_was_not_made_from():
    chosen = propose(curve(samples(seed=1)), experts=0.18, error=None)
    other = outcome(samples(seed=2), chosen["tau_entropy"], chosen["tau_agreement"])
    assert abs(other["expert_share"] - chosen["expert_share"]) < 0.03
    assert abs(other["label_error"] - chosen["label_error"]) < 0.04


def test_weights_count_what_an_audit_stands_for():
    """Experts see all that disagree, and one in ten of the rest: the weighted samples give the error of all."""
    found = samples(20_000)
    expert = (found.entropy < 0.5) & (found.delta < 0.7)
    seen = expert | (np.random.default_rng(3).random(20_000) < 0.1)
    weight = np.where(expert, 1.0, 10.0)[seen]
    part = Reviewed(*(column[seen] for column in (found.entropy, found.delta, found.forced, found.oracle_wrong,
                                                  found.self_wrong)), weight)  # fmt: skip
    whole, audited = outcome(found, 0.5, 0.7), outcome(part, 0.5, 0.7)
    assert audited["label_error"] == pytest.approx(whole["label_error"], abs=0.03)
    assert audited["expert_share"] == pytest.approx(whole["expert_share"], abs=0.02)
    assert audited["ci95"][0] < whole["label_error"] < audited["ci95"][1]


@pytest.fixture
def run_dir(tmp_path):
    """Two iterations of a run: the second has not been reviewed."""
    rng = np.random.default_rng(0)
    for t in (0, 1):
        folder = tmp_path / f"iter-{t:02d}"
        asked, rows, verdicts = [], [], []
        for i in range(200):
            name, oracle, own = f"q{i:03d}", "AB"[int(rng.random() < 0.3)], "AB"[int(rng.random() < 0.2)]
            asked.append({"question_id": name, "kind": "what", "options": ["x", "y"]})
            route = "cold_start" if t == 0 else "oracle"
            rows.append({"question_id": name, "oracle_text": oracle, "self_text": own, "entropy": rng.random(),
                         "agreement": float(oracle == own), "route": route, "audit": False, "label": oracle,
                         "labelled_by": "oracle", "oracle_simulated": True})  # fmt: skip
            action = "reject" if i == 0 else "accept" if oracle == "A" else "edit"
            verdicts.append({"question_id": name, "action": action, "after": "" if i == 0 else "A"})
        write_table(folder / "explore" / "questions.parquet", asked, QUESTION)
        write_table(folder / "annotate" / "annotations.parquet", rows, ANNOTATION)
        routes = {"cold_start": 200 * (t == 0), "oracle": 200 * t, "expert": 0, "self": 0, "dropped": 0}
        later = {"tau_entropy": 0.1, "tau_agreement": 0.7, "dead_band": 0.01,
                 "noise": {"samples": 9, "flips": 1, "flips_without_band": 2, "moved_95": 0.004}}  # fmt: skip
        write_json(folder / "annotate" / "routes.json", {"iteration": t, "routes": routes, "audits": 0,
                                                         "expert_share": float(t == 0)} | (later if t else {}))  # fmt: skip
        if t == 0:
            write_table(folder / "review" / "verdicts.parquet", verdicts, VERDICT)
    return tmp_path


def test_reviewed_samples_are_read_back_and_rejected_ones_left_out(run_dir):
    found = reviewed(run_dir, 0)
    assert len(found) == 199 and set(found.weight) == {1.0}
    assert 0.2 < found.oracle_wrong.mean() < 0.4 and 0.1 < found.self_wrong.mean() < 0.3
    assert reviewed_in(run_dir, range(len(routes_of(run_dir))))[0] == 0
    assert reviewed_in(run_dir, range(2))[0] == 0  # the last that there is anything of
    with pytest.raises(ValueError, match="iter-01 has no review yet"):
        reviewed_in(run_dir, [1])


def test_a_run_that_knows_no_entropy_is_told_so(run_dir):
    path = run_dir / "iter-00" / "annotate" / "annotations.parquet"
    rows = [row | {"entropy": None, "agreement": None, "self_text": ""} for row in read_table(path).to_pylist()]
    write_table(path, rows, ANNOTATION)
    found = reviewed(run_dir, 0)
    assert found.forced.all() and [point["expert_share"] for point in curve(found)] == [1.0]
    with pytest.raises(ValueError, match="experts see 100 % at least: 199 of the reviewed annotations have no usable"):
        propose(curve(found), experts=0.18, error=None)


def test_a_route_of_which_nothing_was_seen_is_no_basis(run_dir):
    folder = run_dir / "iter-00"
    rows = read_table(folder / "annotate" / "annotations.parquet").to_pylist()
    write_table(folder / "annotate" / "annotations.parquet",
                [row | {"route": "self" if i == 0 else "expert"} for i, row in enumerate(rows)], ANNOTATION)  # fmt: skip
    with pytest.raises(ValueError, match="experts saw none of the 1 annotations of route self; calibrate on another"):
        reviewed(run_dir, 0)


def test_the_command_shows_routes_and_proposes_thresholds(run_dir):
    def medq(*arguments):
        return CliRunner().invoke(cli.main, ["annotate", "--run-dir", str(run_dir), *arguments])

    shown = medq()
    assert shown.exit_code == 0 and "1 of 9" in shown.output and "200" in shown.output
    assert json.loads(medq("--json").output)[1]["noise"]["flips"] == 1
    proposal = medq("--calibrate")
    assert proposal.exit_code == 0 and "--set annotate.tau_entropy=" in proposal.output and "<- pro" in proposal.output
    found = json.loads(medq("--calibrate", "--experts", "0.1", "--json").output)
    assert found["samples"] == 199 and found["proposed"]["expert_share"] <= 0.1
    for wrong, why in ((("--experts", "0.1"), "go with --calibrate"),
                       (("--calibrate", "--experts", "0.1", "--error", "0.1"), "one target"),
                       (("--calibrate", "--iteration", "1"), "has no review yet")):  # fmt: skip
        result = medq(*wrong)
        assert result.exit_code == 1 and why in result.output and result.output.startswith("error: ")
    empty = CliRunner().invoke(cli.main, ["annotate", "--run-dir", str(run_dir / "nowhere")])
    assert empty.exit_code == 1 and "no iteration has annotated there" in empty.output
