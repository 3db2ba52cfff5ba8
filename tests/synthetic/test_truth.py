"""Right answers from truth rows, and a truth file that is missing or another table."""

import numpy as np
import pyarrow as pa
import pytest

from medq_ray import questions
from medq_ray.artifacts import write_table
from medq_ray.schema import TRUTH
from medq_ray.synthetic.truth import gold, load_truth

ROW = dict.fromkeys(TRUTH.names, "x") | {"image_id": "i", "modality": "ct", "degradation": "ring", "severity": "mild"}


def test_gold_of_every_kind():
    text, options = questions.what("ct", ["ring", "metal", "noise"], np.random.default_rng(0))
    letter = gold({"kind": "what", "text": text, "options": options}, ROW)
    assert options[questions.LETTERS.index(letter)] == "ring"
    for degradation, right in ((None, "A"), ("ring", "A"), ("metal", "B")):
        text, options = questions.yes_no("ct", degradation)
        assert gold({"kind": "yes_no", "text": text, "options": options}, ROW) == right
    text, options = questions.comparison("ct", np.random.default_rng(1))
    for severity, better in (("none", "the second"), ("mild", "both alike"), ("severe", "the first")):
        letter = gold({"kind": "comparison", "text": text, "options": options}, ROW, ROW | {"severity": severity})
        assert options[questions.LETTERS.index(letter)] == better
    for text in ("Is ring visible in this CT image?", "Is this image of diagnostic quality?"):
        with pytest.raises(ValueError, match="in no words of"):
            gold({"kind": "yes_no", "text": text, "options": ["Yes", "No"]}, ROW)
    described = gold({"kind": "description", "text": questions.description("ct"), "options": []}, ROW)
    assert questions.read_description(described)["severity"] == "mild"


def test_load_truth(tmp_path):
    write_table(tmp_path / "truth.parquet", [ROW], TRUTH)
    assert load_truth(tmp_path) == {"i": ROW}
    with pytest.raises(ValueError, match=r"nowhere/truth\.parquet"):
        load_truth(tmp_path / "nowhere")
    write_table(tmp_path / "truth.parquet", [{"image_id": "i"}], pa.schema([("image_id", pa.string())]))
    with pytest.raises(ValueError, match="lacks anatomy"):
        load_truth(tmp_path)
