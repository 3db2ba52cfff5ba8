"""report.html: made from the run directory alone, whole, self-contained, the same bytes every time."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fake_run import build

from medq_ray.artifacts import read_table, write_table
from medq_ray.report import iteration_table, write_report
from medq_ray.report.charts import axis, spread
from medq_ray.report.labels import compared
from medq_ray.schema import ANNOTATION, KINDS

VOID = {"meta", "img", "br", "line", "circle", "polyline"}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("fake"))


@pytest.fixture
def run(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage; its world stays where it is."""
    return shutil.copytree(built, tmp_path / "run")


def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


class Balance(HTMLParser):
    """Fails on a closing tag that does not match, as a template with a lost tag has."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag, f"</{tag}> at {self.getpos()}"


def test_it_is_one_well_formed_file_that_fetches_nothing(run):
    text = page(run)
    checker = Balance()
    checker.feed(text)
    assert checker.open == []
    assert "<script" not in text and "<link" not in text and "@import" not in text
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]+)"', text))
    assert not re.findall(r"url\((?!data:)", text) and "http" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S)


def test_same_run_gives_the_same_bytes(run):
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_it_says_what_happened(run):
    summary = json.loads((run / "summary.json").read_text())
    text = page(run)
    for row in summary["iterations"]:
        for split in ("dev", "test"):
            assert f"{100 * row[split]['accuracy']:.1f}" in text
    assert "by 19.3 points" in text and "+15.2 to +23.4" in text and "10⁻¹⁶" in text
    for word in ("cold start", "phash", "Where it fails", "paper, t = 0", "explore"):
        assert word in text


def test_every_prototype_is_shown_with_what_it_fetched(run):
    text = page(run)
    for t in (0, 1):
        prototypes = pq.read_table(run / f"iter-0{t}/evaluate/prototypes.parquet").to_pylist()
        assert f"Iteration {t}: {len(prototypes)} prototypes" in text
        assert all(p["medoid"] in text for p in prototypes)
        picks = pq.read_table(run / f"iter-0{t}/explore/selection.parquet").to_pylist()
        first = max((p for p in picks if p["similarity"] is not None), key=lambda p: p["similarity"])
        assert first["image_id"] in text and f"<b>{first['similarity']:.2f}</b>" in text


def test_clusters_budget_and_questions_are_shown(run):
    text = page(run)
    assert "MRI: yes" in text and "CT: <b>no</b>" in text and "fundus: too few to tell" in text
    shares = read_table(run / "iter-00/explore/shares.parquet").to_pylist()
    assert f"{sum(share['drawn'] for share in shares)} images for" in text
    questions = read_table(run / "iter-00/explore/questions.parquet").to_pylist()
    assert "two options are the same" in text and text.count('class="stack letters"') == len(KINDS) - 1
    assert {q["kind"] for q in questions} == set(KINDS)
    assert "free text" in text and "selected for" in text


def test_what_is_simulated_is_marked(run):
    text = page(run)
    assert "Simulated in this run:" in text and "known only because the world is synthetic" in text
    assert 'oracle money <span class="tag">simulated</span>' in text
    assert 'model output (tokens)<' in text


def test_labels_are_held_against_the_truth_audits_and_money(run):
    text = page(run)
    assert "How wrong the labels are" in text and "second over first" in text
    assert "What nobody was asked to look at" in text and "experts see, %" in text
    assert "points an expert&#39;s minute" in text and "0.0912" in text


def test_errors_of_labels_are_shares_of_what_was_said_and_of_what_was_taught():
    oracle = [(f"i{i}", i % 5 < 2) for i in range(200)]  # 40 %
    trained = [(f"i{i}", i % 5 == 0) for i in range(0, 200, 5)] + [(f"i{i}", False) for i in range(1, 160, 1)]
    found = compared(oracle, trained)
    assert (found["oracle"][0], found["trained"][0], found["ratio"]) == ("40.0", "20.1", "0.50")
    low, high = (float(end) for end in found["ratio_ci"].split(" to "))
    assert low < 0.5 < high < 0.75
    assert compared([("a", False)], [("a", False)])["ratio"] is None


def test_a_run_without_logprobs_has_a_report(run):
    for t in (0, 1):
        path = run / f"iter-{t:02d}" / "annotate" / "annotations.parquet"
        rows = [row | {"entropy": None, "agreement": None, "self_text": ""} for row in pq.read_table(path).to_pylist()]
        write_table(path, rows, ANNOTATION)
    assert "Labels and verdicts" in page(run)


def test_truth_is_not_shown_where_there_is_none(run):
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"world": str(run / "elsewhere")}))
    text = page(run)
    assert "known only because" not in text and "By modality and degradation" not in text
    assert "How wrong the labels are" not in text and "What nobody was asked to look at" in text
    assert "By modality" in text


def test_missing_images_become_placeholders(run):
    for name in ("evaluate/prototypes", "evaluate/failures", "explore/selection"):
        path = run / "iter-00" / f"{name}.parquet"
        table = pq.read_table(path)
        column = "medoid_uri" if "medoid_uri" in table.schema.names else "uri"
        gone = table.set_column(table.schema.get_field_index(column), column, [["/nowhere.png"] * table.num_rows])
        pq.write_table(gone, path)
    assert "image not found" in page(run)


@pytest.mark.parametrize(
    "gone", ["iter-00/explore", "iter-01/annotate", "iter-01/evolve", "pool", "ledger.jsonl", "run.yaml"]
)
def test_a_missing_part_costs_its_section_only(run, gone):
    path = run / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "Where it fails" in page(run)


def test_text_from_data_is_escaped(run):
    path = run / "iter-00/evaluate/failures.parquet"
    table = pq.read_table(path)
    evil = table.set_column(table.schema.get_field_index("given"), "given", [["<b>x</b> & y"] * table.num_rows])
    pq.write_table(evil, path)
    text = page(run)
    assert "&lt;b&gt;x&lt;/b&gt; &amp; y" in text and "<b>x</b>" not in text


def test_a_run_without_summary_is_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match="holds no summary.json yet"):
        write_report(tmp_path)


def test_a_base_only_run_has_a_report(tmp_path):
    text = page(build(tmp_path, pool=5, dev=15, iterations=0))
    assert "Prototypes and what they fetched" not in text and "Where it fails" in text


@pytest.mark.parametrize("shares", [[0.5], [0.0, 1.0], [0.98, 1.0], [0.31, 0.79], []])
def test_axis_holds_every_value(shares):
    low, high = axis(shares)
    assert 0 <= low < high <= 1 and all(low - 1e-9 <= share <= high + 1e-9 for share in shares)


def test_labels_do_not_cover_each_other():
    moved = sorted(y for _, y in spread({"a": (0.0, 50.0), "b": (0.0, 52.0), "c": (0.0, 90.0)}).values())
    assert all(lower - upper >= 15 for upper, lower in zip(moved, moved[1:], strict=False))


@pytest.fixture(scope="module")
def fallen(tmp_path_factory) -> Path:
    """A run whose first checkpoint was not promoted, and the second was."""
    return build(tmp_path_factory.mktemp("fallen"), pool=20, dev=15, rejected={1})


def test_a_checkpoint_that_was_not_promoted_is_marked_and_explained(fallen):
    summary, text = json.loads((fallen / "summary.json").read_text()), page(fallen)
    for row in summary["iterations"][1:]:
        assert f"t = {row['t']}, {row['promotion']['why']}".replace("'", "&#39;") in text
    assert "Serving: <b>iter-01/evolve/checkpoint</b>" in text and text.count(">not promoted</span>") == 1
    assert "t = 1, not promoted</th>" in text
    assert text.count('class="cross dev"') == text.count('class="cross test"') == 1 + len(KINDS)  # of t = 1, in each drawing
    main = text[text.index("<svg") : text.index("</svg>")]
    lines = re.findall(r'<polyline class="line \w+" points="([^"]+)"', main)
    assert [len(points.split()) for points in lines] == [2, 2]  # base and t = 2
    first, last = (100 * row["test"]["accuracy"] for row in (summary["iterations"][0], summary["iterations"][2]))
    assert f'<span class="from">{first:.1f}</span><span class="arrow">→</span>{last:.1f}' in text and "by 19.3 points" in text
    # the gain of a fine-tuning is over what served: of the second it is 2 - 0, not 2 - 1
    dev = [100 * row["dev"]["accuracy"] for row in summary["iterations"]]
    for t in (1, 2):
        assert f"<td>{dev[t] - dev[0]:+.1f}</td>".replace("-", "−") in text


def test_the_last_checkpoint_is_no_result_if_it_was_not_promoted(tmp_path):
    text = page(build(tmp_path / "last", pool=5, dev=15, rejected={2}))
    summary = json.loads((tmp_path / "last/run/summary.json").read_text())
    assert f'<span class="arrow">→</span>{100 * summary["iterations"][1]["test"]["accuracy"]:.1f}' in text
    assert "Serving: <b>iter-00/evolve/checkpoint</b>" in text and "2 fine-tunings" in text
    none = page(build(tmp_path / "none", pool=5, dev=15, rejected={1, 2}))
    assert "which goes on serving: dev shows a loss for each of the 2 checkpoints" in none and "Serving: <b>the base</b>" in none
    assert "by 19.3 points" not in none and "checkpoint that serves (filled)" not in none


def test_prototypes_are_those_that_the_selection_went_out_from(fallen, tmp_path):
    run = shutil.copytree(fallen, tmp_path / "run")
    for name in ("prototypes", "failures", "clusters"):
        next((run / "iter-01/evaluate").glob(f"{name}.*")).unlink()
    prototypes = read_table(run / "iter-00/evaluate/prototypes.parquet").num_rows
    assert f"Iteration 1: {prototypes} prototypes, those of t = 0 again" in page(run)
    assert f"Iteration 0: {prototypes} prototypes</h3>" in page(run)


def test_a_run_of_before_there_were_promotions_has_a_report(run):
    path = run / "summary.json"
    summary = json.loads(path.read_text())
    del summary["serving"], summary["comparison"]["base_to_serving"]
    for row in summary["iterations"]:
        del row["promotion"]
    path.write_text(json.dumps(summary))
    assert "by 10.0 points" in page(run) and "Serving:" not in page(run)
    assert "+10.0 points" in iteration_table(summary)


def test_a_run_that_goes_on_claims_no_result_of_what_it_has_not_evaluated(run):
    path = run / "summary.json"
    summary = json.loads(path.read_text())
    for rows, words in ((1, "no checkpoint has been evaluated after training yet"), (2, "after training on questions")):
        young = {"iterations": summary["iterations"][:rows], "serving": {"t": rows - 1}, "stopped": None}
        path.write_text(json.dumps(summary | young))
        text = page(run)
        assert words in text and "still running" in text and f"{rows - 1} fine-tuning" in text
        table = iteration_table(json.loads(path.read_text()))
        assert "McNemar" not in table and "stopped" not in table
