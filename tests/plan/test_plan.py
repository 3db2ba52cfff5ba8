"""`medq plan` tells what fits, from sizes alone: nothing is fetched, and everything assumed is said."""

import json
import math

import pytest
from click.testing import CliRunner

from medq_ray import recipes
from medq_ray.cli import main
from medq_ray.config import override
from medq_ray.evolve.flops import PEAK
from medq_ray.model.tiny import embedded_checkpoint
from medq_ray.plan import Hardware, plan
from medq_ray.plan.assumed import Assumed
from medq_ray.plan.phases import BANDWIDTH
from medq_ray.plan.sizes import sizes_of

A100S = Hardware(gpus=8, gpu_memory=80e9)
BIG = ["internvl3_8b", "qwen2_5_vl_7b"]


@pytest.fixture(autouse=True)
def no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: pytest.fail("the hub was asked"))


def run(*arguments):
    return CliRunner().invoke(main, ["plan", *arguments])


@pytest.fixture(scope="module", params=BIG)
def recipe(request):
    return recipes.build(request.param)


@pytest.mark.parametrize(
    ("name", "published"), [("OpenGVLab/InternVL3-8B-hf", 7_944_373_760), ("Qwen/Qwen2.5-VL-7B-Instruct", 8_292_166_656)]
)
def test_parameters_are_those_of_the_published_checkpoints(name, published):
    model = sizes_of(f"hf-hub:{name}")
    assert model.total == published == sum(model.parameters.values())
    assert (model.language.key, model.language.inner, model.merged) == (512, 18944, 4)
    assert model.image_tokens(448) == 256


def test_the_embedded_models_sizes_are_its_weights():
    from safetensors import safe_open

    with safe_open(embedded_checkpoint() / "model.safetensors", "numpy") as file:
        weights = {name: file.get_slice(name).get_shape() for name in file.keys()}
    model = sizes_of("embedded")
    assert model.total == sum(math.prod(shape) for shape in weights.values()) and model.tied
    assert model.image_tokens(448) == 16 and model.classes == 1


def test_the_papers_node_fits_and_one_gpu_does_not(recipe):
    node, one = plan(recipe, A100S), plan(recipe, Hardware(1, 80e9))
    assert node["fits"] and list(node["phases"]) == ["evaluate", "explore", "annotate", "review", "evolve"]
    evolve = node["phases"]["evolve"]
    assert 16 * node["model"]["total"] / 8 < evolve["gpu_memory"] < 80e9  # weights, gradients, moments are the least
    assert not one["fits"] and one["phases"]["evaluate"]["fits"] and not one["phases"]["evolve"]["fits"]
    assert one["phases"]["evolve"]["gpu_memory"] > 16 * node["model"]["total"]


def test_memory_and_time_follow_the_settings(recipe):
    def evolve(*changes, hardware=A100S):
        return plan(override(recipe, list(changes)), hardware)["phases"]["evolve"]

    usual, long = evolve(), evolve("evolve.max_tokens=65536")
    assert evolve("evolve.max_tokens=65536", "evolve.activation_checkpointing=false")["gpu_memory"] > long["gpu_memory"]
    assert long["gpu_memory"] > usual["gpu_memory"]
    assert evolve("evolve.train_language=false")["gpu_memory"] <= usual["gpu_memory"]
    assert usual["seconds"]["last"] > usual["seconds"]["first"] == evolve("evolve.replay=none")["seconds"]["last"]
    assert evolve(hardware=Hardware(8, 141e9, "H200"))["seconds"]["last"] < usual["seconds"]["last"]
    assert not evolve("evolve.max_tokens=128")["fits"]  # no sample does


def test_people_are_counted_and_waited_for(recipe):
    review = plan(override(recipe, ["review.double_share=0"]), A100S)["phases"]["review"]
    items = recipe.explore.budget * len(recipe.explore.kinds)
    assert review["people_seconds"]["first"] == items * 30.0
    assert review["people_seconds"]["last"] == pytest.approx(items * 30.0 * recipe.annotate.expert_share)
    assert review["seconds"] == {"first": None, "last": None}


def test_a_node_with_little_host_memory_does_not_fit(recipe):
    small = plan(recipe, Hardware(8, 80e9, host_memory=64e9))
    assert not small["fits"] and not small["phases"]["evolve"]["fits"] and small["phases"]["evaluate"]["fits"]


def test_the_command_prints_every_phase_and_every_assumption():
    done = run("--recipe", "internvl3_8b", "--gpus", "8", "--gpu-memory", "80")
    assert done.exit_code == 0 and "it fits" in done.output, done.output
    for name, value in Assumed():
        assert f"{name} = {value:,}" in done.output
    for phase in ("evaluate", "explore", "annotate", "review", "evolve"):
        assert f"\n{phase}" in done.output
    asked = ("--gpus", "1", "--gpu-memory", "24", "--set", "evolve.max_tokens=1024")
    found = json.loads(run("--recipe", "demo", *asked, "--json").output)
    assert found["fits"] and found["model"]["name"] == "embedded"
    assert found["assumptions"]["peak_flops"]["value"] == 312e12


def test_every_gpu_has_peak_and_bandwidth_and_is_in_the_help():
    assert set(BANDWIDTH) == set(PEAK)
    assert all(name in run("--help").output for name in PEAK)


def test_a_folders_config_is_enough(tmp_path):
    config = embedded_checkpoint() / "config.json"
    (tmp_path / "config.json").write_text(config.read_text())
    asked = ("--recipe", "internvl3_8b", "--gpus", "1", "--gpu-memory", "24", "--json")
    assert json.loads(run(*asked, "--checkpoint", str(tmp_path)).output)["model"]["total"] == sizes_of("embedded").total


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "give either --recipe or --config"),
        (["--recipe", "demo", "--gpu", "T4"], "nothing is known of a GPU 'T4'; there are: A100"),
        (["--recipe", "dmo"], "unknown recipe 'dmo'"),
        (["--recipe", "demo", "--set", "evolve.max_token=1"], "unknown setting 'evolve.max_token'"),
        (["--recipe", "demo", "--checkpoint", "{tmp}/nowhere"], "nowhere has no config.json"),
        (["--recipe", "demo", "--checkpoint", "hf-hub:org/model"], "sizes of hf-hub:org/model are not known here"),
        (["--recipe", "demo", "--checkpoint", "{tmp}/broken"], "config.json is not JSON"),
        (["--recipe", "demo", "--checkpoint", "{tmp}/other"], "no adapter to fine-tune a 'bert' model"),
    ],
)
def test_bad_input_is_one_line(arguments, complaint, tmp_path):
    for name, text in (("broken", "{"), ("other", '{"model_type": "bert"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    done = run(*(word.replace("{tmp}", str(tmp_path)) for word in arguments), "--gpus", "1", "--gpu-memory", "24")
    assert done.exit_code == 1 and complaint in done.output, done.output
    assert done.output.count("\n") == 1
