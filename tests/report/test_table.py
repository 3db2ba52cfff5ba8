"""The table that ends a run in the terminal: complete, and never wider than 110 columns."""

import json
from pathlib import Path

import pytest
from fake_run import build

from medq_ray.report import iteration_table
from medq_ray.report.text import capability_words, p_value


@pytest.fixture(scope="module")
def summary(tmp_path_factory) -> dict:
    run: Path = build(tmp_path_factory.mktemp("fake"), pool=20, dev=15)
    return json.loads((run / "summary.json").read_text())


def test_it_fits_and_is_plain_text(summary):
    lines = iteration_table(summary).splitlines()
    assert max(map(len, lines)) <= 110
    assert all(line.isprintable() and line == line.rstrip() for line in lines)


def test_it_fits_with_the_widest_numbers_and_many_counts(summary):
    wide = json.loads(json.dumps(summary).replace('"n": 900', '"n": 1000000'))
    for row in wide["iterations"]:
        for score in [row["test"], *row["test"]["by_kind"].values()]:
            score |= {"accuracy": 1.0, "ci95": [1.0, 1.0]}
        if "dropped" in row:
            row["dropped"] = {f"a_rule_with_a_long_name_{i}": 10**6 for i in range(12)}
    assert max(map(len, iteration_table(wide).splitlines())) <= 110


def test_every_iteration_shows_scores_routes_verdicts_drops_and_seconds(summary):
    text = iteration_table(summary)
    for row in summary["iterations"]:
        for split in ("dev", "test"):
            for score in (row[split], *row[split]["by_kind"].values()):
                low, high = score["ci95"]
                assert f"{100 * score['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in text
    for word in ("cold start", "accept", "phash", "evaluate 61", "trained on", "stopped: max iterations"):
        assert word in text
    assert "+19.3 points [+15.2, +23.4]" in text


def test_it_says_what_serves_and_why(tmp_path):
    tables = {}
    for name, rejected in (("some", {1}), ("none", {1, 2})):
        run = build(tmp_path / name, pool=5, dev=15, rejected=rejected)
        tables[name] = iteration_table(json.loads((run / "summary.json").read_text()))
        assert max(map(len, tables[name].splitlines())) <= 110
    joined = " ".join(tables["some"].split())
    assert "not promoted: dev -3.00 points [-7.0, +1.0] against the base (450 questions, 9 answered better" in joined
    assert "promoted: dev +12.00 points" in joined and "serving: iter-01/evolve/checkpoint" in joined
    assert "serving: base" in tables["none"] and "no checkpoint was promoted" in tables["none"]
    assert "+19.3" in tables["some"] and "+19.3" not in tables["none"]


def test_an_unscored_kind_is_a_dash(summary):
    changed = json.loads(json.dumps(summary))
    changed["iterations"][0]["dev"]["by_kind"]["what"] = {"accuracy": None, "ci95": [0.0, 1.0], "n": 0}
    assert "–" in iteration_table(changed)


@pytest.mark.parametrize("p, text", [(0.5, "0.500"), (0.0123, "0.012"), (3.1e-16, "3\u202f×\u202f10⁻¹⁶"), (0.0, "0")])
def test_p_values(p, text):
    assert p_value(p) == text


@pytest.mark.parametrize(
    "name, text",
    [
        ("cell:mri/bias_field", "MRI · bias field"),
        ("cell:ct/none", "CT · clean"),
        ("kind:yes_no", "yes/no questions"),
        ("severity:severe", "severe degradation"),
        ("scope:specific", "specific degradations"),
    ],
)
def test_capabilities_in_words(name, text):
    assert capability_words(name) == text
