"""The proposed tau_sim separates dev images of a capability from others, whatever the encoder's scale."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from medq_ray.cli import main
from medq_ray.explore.calibrate import passing, propose, similarities, spread, table
from medq_ray.synthetic.world import write_world


def images(cone: float, spread: float = 0.3, seed: int = 0):
    """Unit vectors of four cells in two modalities, all within a cone."""
    rng = np.random.default_rng(seed)
    cells = ["mri/a", "mri/b", "ct/a", "ct/b"] * 50
    centre = {name: rng.standard_normal(32) for name in sorted(set(cells))}
    rows = np.stack([centre[name] + spread * rng.standard_normal(32) for name in cells])
    rows = cone * rows / np.linalg.norm(rows, axis=1, keepdims=True) + np.eye(32)[0]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), [name[:2] for name in cells], cells


@pytest.mark.parametrize("cone", [10.0, 1.0, 0.5])
def test_the_proposal_follows_the_scale_of_the_encoder(cone):
    found = similarities(*images(cone))
    tau = propose(passing(found))
    assert (found["same"] > tau).mean() > 0.95 and (found["other"] > tau).mean() < 0.05


def test_fewer_images_make_a_proposal_less_sure():
    vectors, modality, cells = images(1.0, spread=0.6)
    low, high = spread(vectors, modality, cells)
    fewer = [i for i in range(len(cells)) if i % 40 < 4]
    lower, higher = spread(vectors[fewer], [modality[i] for i in fewer], [cells[i] for i in fewer])
    assert low <= propose(passing(similarities(vectors, modality, cells))) <= high
    assert higher - lower > high - low


def test_an_image_is_not_compared_with_itself():
    vectors = np.eye(4)
    found = similarities(vectors, ["mri"] * 4, ["a", "a", "b", "b"])
    assert found["same"] == pytest.approx(0) and len(found["other"]) == 4 and not len(found["elsewhere"])
    with pytest.raises(ValueError, match="needs more"):
        similarities(vectors, ["mri"] * 4, list("abcd"))
    with pytest.raises(ValueError, match="others to tell from"):
        similarities(vectors, ["mri", "mri", "ct", "ct"], list("aabb"))
    assert (passing({"elsewhere": np.empty(0)})["elsewhere"] == 0).all()


def test_shares_fall_with_the_threshold_and_the_table_marks_the_proposal():
    shares = passing(similarities(*images(1.0)))
    for values in shares.values():
        assert (np.diff(values) <= 0).all() and values[0] <= 1 and values[-1] >= 0
    tau = propose(shares)
    assert f"{tau:.2f}" in next(line for line in table(shares, tau).splitlines() if line.endswith("<-"))


def test_the_command_proposes_for_the_embedded_encoder(tmp_path):
    write_world(tmp_path / "w", 400, 3, size=112, dev_images=120, test_images=60)
    done = CliRunner().invoke(main, ["calibrate", "--world", str(tmp_path / "w"), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output[done.output.index("{") :])
    assert 0.6 < found["tau_sim"] < 0.95 and found["images"] == 120
    assert found["interval"][0] <= found["tau_sim"] <= found["interval"][1]
    at = found["thresholds"].index(found["tau_sim"])
    assert found["same"][at] > 0.6 and found["other"][at] < 0.4
