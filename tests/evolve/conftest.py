"""Both architectures, each as small as it gets, and samples whose lengths and images differ."""

import numpy as np
import pytest
from PIL import Image

from medq_ray.evolve.dataset import chats
from medq_ray.images import pixel_digest
from medq_ray.model.tiny import embedded_checkpoint
from tests import tiny_qwen
from tests.evolve import fake
from tests.evolve.run_evolve import run


@pytest.fixture(scope="session")
def qwen(tmp_path_factory):
    return tiny_qwen.write(tmp_path_factory.mktemp("qwen"), seed=0)


@pytest.fixture(scope="session", params=["internvl", "qwen2_5_vl"])
def checkpoint(request, qwen):
    return {"internvl": embedded_checkpoint(), "qwen2_5_vl": qwen}[request.param]


@pytest.fixture(scope="session")
def rows(tmp_path_factory) -> list[dict]:
    """schema.CHAT rows: letters, descriptions and a comparison, about images of three sizes."""
    folder = tmp_path_factory.mktemp("images")
    images = fake.write_images(folder, 3)
    for image, shape in zip(images[1:], [(84, 140, 3), (168, 112, 3)], strict=True):
        pixels = np.random.default_rng(len(image)).integers(0, 256, shape, dtype=np.uint8)
        image |= {"image_id": pixel_digest(pixels), "uri": str(folder / f"{shape[0]}.png")}
        Image.fromarray(pixels).save(image["uri"])
    return chats(fake.samples(images), fake.pooled(images)).to_pylist()


@pytest.fixture(scope="session")
def seven(tmp_path_factory) -> list[dict]:
    """Images of `unbroken`."""
    return fake.write_images(tmp_path_factory.mktemp("seven"), 7)


@pytest.fixture(scope="session")
def unbroken(ray_local, seven, tmp_path_factory):
    """(folder, counts) of a whole fine-tuning of the embedded model on two workers, which nothing disturbed."""
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, run(seven, folder)
