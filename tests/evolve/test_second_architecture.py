"""The tiny Qwen2.5-VL of the tests is a checkpoint as the project takes any: it loads, sees, and samples fit it."""

import numpy as np
import pytest

from tests import tiny_qwen

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_qwen.write(tmp_path_factory.mktemp("qwen"), seed=0)


@pytest.fixture(scope="module")
def processor(checkpoint):
    from medq_ray.evolve.encoding import load_processor

    return load_processor(checkpoint)


@pytest.fixture(scope="module")
def model(checkpoint):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(checkpoint)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_it_is_small_and_equal_seeds_give_equal_files(checkpoint, model, tmp_path):
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 2e6
    tiny_qwen.write(tmp_path / "same", seed=0)
    tiny_qwen.write(tmp_path / "other", seed=1)
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "same").iterdir()}
    assert files["model.safetensors"] != (tmp_path / "other" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "shape, tokens", [((112, 112), 16), ((56, 56), 4), ((28, 28), 4), ((84, 140), 15), ((1000, 1000), 36)]
)
def test_an_image_has_as_many_tokens_as_its_size_asks_for(processor, model, shape, tokens):
    from medq_ray.evolve.encoding import encode

    encoded, others = encode(processor, [noise(*shape)], "Which?\nA. x\nB. y", "A")
    assert (encoded["input_ids"] == model.config.image_token_id).sum() == tokens
    assert others["image_grid_thw"].prod() == 4 * tokens == len(others["pixel_values"])


def test_labels_are_the_answer_and_its_end_and_the_model_sees_the_image(processor, model):
    from medq_ray.evolve.encoding import IGNORED, encode

    outputs = []
    for seed in (0, 1):
        tokens, others = encode(processor, [noise(112, 112, seed)], "Which?\nA. x\nB. y", "B")
        labels = tokens.pop("labels")[0]
        assert processor.tokenizer.decode(labels[labels != IGNORED]) == "B<|im_end|>"
        with torch.inference_mode():
            outputs.append(model(**tokens, **others).logits)
    assert outputs[0].shape == (1, len(labels), model.config.text_config.vocab_size)
    assert outputs[0].isfinite().all() and not torch.allclose(outputs[0][:, -1], outputs[1][:, -1])
