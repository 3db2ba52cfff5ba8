"""The tiny Qwen2.5-VL of the tests is a checkpoint as the project takes any: it loads, sees, and samples fit it."""

import numpy as np
import pytest

from tests import tiny_qwen

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def encoder(qwen):
    from medq_ray.evolve.encoding import SampleEncoder

    return SampleEncoder(qwen)


@pytest.fixture(scope="module")
def model(qwen):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(qwen)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_it_is_small_and_equal_seeds_give_equal_files(qwen, model, tmp_path):
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 2e6
    tiny_qwen.write(tmp_path / "same", seed=0)
    tiny_qwen.write(tmp_path / "other", seed=1)
    files = {path.name: path.read_bytes() for path in qwen.iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "same").iterdir()}
    assert files["model.safetensors"] != (tmp_path / "other" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "shape, tokens", [((112, 112), 16), ((56, 56), 4), ((28, 28), 4), ((84, 140), 15), ((1000, 1000), 36)]
)
def test_an_image_has_as_many_tokens_as_its_size_asks_for(encoder, model, shape, tokens):
    encoded = encoder.encode([noise(*shape)], "Which?\nA. x\nB. y", "A")
    assert (encoded["input_ids"] == model.config.image_token_id).sum() == tokens
    assert encoded["image_grid_thw"].prod() == 4 * tokens == len(encoded["pixel_values"])


def test_labels_are_the_answer_and_its_end_and_the_model_sees_the_image(encoder, model):
    from medq_ray.evolve.encoding import IGNORED

    outputs = []
    for seed in (0, 1):
        row = encoder.encode([noise(112, 112, seed)], "Which?\nA. x\nB. y", "B")
        assert encoder.processor.decode(row["labels"][row["labels"] != IGNORED]) == "B<|im_end|>"
        seen = {name: row[name] for name in ("pixel_values", "image_grid_thw")}
        with torch.inference_mode():
            outputs.append(model(row["input_ids"][None], position_ids=row["positions"][:, None], **seen).logits)
    assert outputs[0].shape == (1, len(row["labels"]), model.config.text_config.vocab_size)
    assert outputs[0].isfinite().all() and not torch.allclose(outputs[0][:, -1], outputs[1][:, -1])
