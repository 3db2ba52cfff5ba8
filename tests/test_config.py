"""Settings are validated, frozen, documented, and know which of them decide results."""

import pytest
from pydantic import ValidationError

from medq_ray import config, recipes
from medq_ray.config import Config, identity, load, override


def test_every_field_says_what_it_is():
    for section in Config.model_fields.values():
        fields = getattr(section.annotation, "model_fields", {})
        for name, field in fields.items():
            assert field.description, f"{section.annotation.__name__}.{name} has no docstring"


def test_the_paper_values_are_the_defaults():
    defaults = Config()
    assert (defaults.evaluate.runs, defaults.evaluate.gamma) == (5, 0.6)
    assert (defaults.explore.tau_sim, defaults.explore.budget) == (0.75, 2000)
    assert (defaults.evolve.learning_rate, defaults.evolve.epochs) == (2e-5, 3)


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Config().evaluate.runs = 3


@pytest.mark.parametrize(
    ("assignment", "complaint"),
    [
        ("evaluate.run=3", "unknown setting 'evaluate.run'; there are: crossings, gamma"),
        ("nothing.at.all=3", "unknown setting 'nothing.at.all'; there are: annotate"),
        ("evaluate.runs=0", "evaluate.runs: Input should be greater than or equal to 1 (got 0)"),
        ("evaluate.runs=many", "evaluate.runs: Input should be a valid integer"),
        ("evaluate.runs", "expected section.field=value"),
    ],
)
def test_a_wrong_setting_is_named(assignment, complaint):
    with pytest.raises(ValueError) as error:
        override(Config(), [assignment])
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_overrides_take_yaml_values():
    assert override(Config(), ["oracle.model=@cf/llava"]).oracle.model == "@cf/llava"  # YAML reserves the @
    changed = override(Config(), ["explore.kinds=[what, how]", "engine.base_url=null", "evolve.learning_rate=1e-3"])
    assert changed.explore.kinds == ("what", "how") and changed.engine.base_url is None
    with pytest.raises(ValueError, match="oracle: .*max_cost limits nothing without input_price and output_price"):
        override(Config(), ["oracle.max_cost=5"])
    priced = override(Config(), ["oracle.max_cost=5", "oracle.input_price=2.5", "oracle.output_price=10"])
    assert priced.oracle.tariff()["section"] == "oracle" and priced.judge.tariff()["section"] == "judge"
    for kinds in ("[]", "[what, what]"):
        with pytest.raises(ValueError, match="explore.kinds: .*one or more kinds, each once"):
            override(Config(), [f"explore.kinds={kinds}"])
    assert changed.evolve.learning_rate == 1e-3


def test_hardware_is_not_identity():
    assert identity(override(Config(), ["engine.concurrency=7", "evolve.workers=8"])) == identity(Config())
    assert identity(override(Config(), ["evaluate.runs=3"])) != identity(Config())
    ports = [override(Config(), [f"engine.base_url=http://127.0.0.1:{port}/v1"]) for port in (1, 2)]
    assert identity(ports[0]) == identity(ports[1]) != identity(Config())  # another server may serve another model
    for section, fields in config.HARDWARE_FIELDS.items():
        assert fields <= set(Config.model_fields[section].annotation.model_fields), section


def test_a_secret_in_the_wrong_place_is_not_printed(tmp_path):
    (tmp_path / "run.yaml").write_text("oracle: {api_key: sk-live-123}\n")
    with pytest.raises(ValueError, match="oracle.api_key") as error:
        load(tmp_path / "run.yaml")
    assert "sk-live" not in str(error.value)


def test_settings_survive_yaml(tmp_path):
    import yaml

    for name in recipes.RECIPES:
        chosen = recipes.build(name, seed=4)
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(chosen.model_dump(mode="json")))
        assert load(tmp_path / "run.yaml") == chosen
        assert chosen.recipe == name and chosen.seed == 4


@pytest.mark.parametrize(
    ("name", "checkpoint"),
    [("internvl3_8b", "OpenGVLab/InternVL3-8B-hf"), ("qwen2_5_vl_7b", "Qwen/Qwen2.5-VL-7B-Instruct")],
)
def test_the_papers_recipes_are_what_section_3_1_says(name, checkpoint):
    chosen = recipes.build(name)
    assert chosen.engine.checkpoint == f"hf-hub:{checkpoint}"
    assert "BiomedCLIP" in chosen.encoder.name and chosen.explore.tau_sim == 0.75
    assert (chosen.evaluate.runs, chosen.evaluate.gamma, chosen.explore.budget) == (5, 0.6, 2000)
    assert (chosen.evolve.learning_rate, chosen.evolve.epochs, chosen.evolve.workers) == (2e-5, 3, 8)
    assert chosen.oracle.model == "gpt-4o" and chosen.oracle.base_url and chosen.review.reviewer == "people"
    assert chosen.loop.max_iterations * chosen.explore.budget == 10_000


def test_an_unknown_recipe_lists_those_there_are():
    with pytest.raises(ValueError, match="unknown recipe 'dmo'; there are: demo"):
        recipes.build("dmo")


def test_a_settings_file_that_is_no_settings_file_is_named(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "bad.yaml").write_text("a: [")
    for name in ("list.yaml", "bad.yaml", "missing.yaml"):
        with pytest.raises(ValueError, match=name):
            load(tmp_path / name)


@pytest.mark.parametrize("assignment", ["oracle.input_price=.inf", "annotate.dead_band=.inf", "annotate.tau_entropy=.nan"])
def test_numbers_are_finite(assignment):
    with pytest.raises(ValueError, match=assignment.partition("=")[0]):
        config.override(config.Config(), [assignment])


def test_a_judge_of_agreement_must_be_named_in_one_line():
    for given in ([], ["judge.base_url=http://127.0.0.1/v1"]):
        with pytest.raises(ValueError, match="^invalid settings: annotate.agreement=judge needs a judge") as error:
            config.override(config.Config(), ["annotate.agreement=judge", *given])
        assert len(str(error.value)) < 150
