"""The estimate of a training worker's memory is within 15 % of what a real step of the real worker allocates."""

import pytest

from medq_ray.config import Evolve
from medq_ray.evolve.dataset import chats
from medq_ray.model.tiny import embedded_checkpoint
from medq_ray.plan.memory import CPU, Row, training
from medq_ray.plan.sizes import sizes_of
from tests import tiny_qwen
from tests.evolve import fake

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    images = fake.write_images(tmp_path_factory.mktemp("images"), 10)
    return chats(fake.samples(images), fake.pooled(images)).to_pylist()


@pytest.fixture(scope="module", params=["internvl", "qwen2_5_vl"])
def checkpoint(request, tmp_path_factory):
    if request.param == "internvl":
        return embedded_checkpoint()
    return tiny_qwen.write(tmp_path_factory.mktemp("qwen"), seed=0)


@pytest.fixture(scope="module")
def encoded(checkpoint, samples):
    from medq_ray.evolve.encoding import SampleEncoder

    encoder = SampleEncoder(checkpoint)
    return [encoder.read(sample) for sample in samples]


@pytest.fixture
def ranks(monkeypatch):
    """ranks(1): a real process group. ranks(4): one of four workers, whose messages are allocated but never sent (what
    arrives is what lay in memory), and a unit for every block, which the tiny models' are too small for."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from medq_ray.evolve import worker
    from medq_ray.plan import memory

    def start(world: int) -> None:
        if world == 1:
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
            return
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
        for module in (worker, memory):
            monkeypatch.setattr(module, "UNIT", 1)

    yield start
    dist.destroy_process_group()


def measured(checkpoint, encoded, samples, settings):
    """(bytes at the peak of the second step, the row): the first step makes AdamW's moments."""
    import torch.distributed as dist

    from medq_ray.evolve import packing, worker
    from medq_ray.evolve.encoding import pack
    from tests.plan.measuring import held, peak_of

    torch.set_num_threads(1)
    model = worker.load_model(checkpoint, settings, torch.device("cpu"))
    optimizer = worker.new_optimizer(model, settings)
    tensors = pack(encoded)
    row = packing.Row(1, tuple(range(len(encoded))), len(encoded), last=True)

    def step() -> None:
        losses = worker.backward(model, tensors, row, "sum")
        if dist.get_world_size() == 1:
            worker.finish_step(model, optimizer, [(row, tensors, losses)], samples, 1e-4, settings)
        else:  # it would look at numbers that nobody sent
            torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
            optimizer.step()
            optimizer.zero_grad()

    step()
    moments = [value for state in optimizer.state.values() for value in state.values()]
    before = held([*model.parameters(), *moments, *tensors.values()])
    return before + peak_of(step), tensors


def test_blocks_are_units_from_the_workers_size_on():
    from medq_ray.evolve import worker
    from medq_ray.plan import memory

    assert memory.UNIT == worker.UNIT


@pytest.mark.parametrize(
    ("world", "count", "checkpointing", "frozen"),
    [
        *((1, count, checkpointing, set()) for count in (4, 36) for checkpointing in (True, False)),
        *((4, count, True, set()) for count in (4, 36)),
        *((4, 4, checkpointing, {part}) for part in ("vision", "language") for checkpointing in (True, False)),
    ],
)
def test_it_is_within_15_percent_of_the_peak(
    checkpoint, encoded, samples, ranks, world, count, checkpointing, frozen
):
    ranks(world)
    chosen = {"activation_checkpointing": checkpointing} | {f"train_{part}": False for part in frozen}
    peak, tensors = measured(checkpoint, encoded[:count], samples, Evolve(**chosen).model_dump())
    model, lengths = sizes_of(str(checkpoint)), tensors["lengths"]
    image_tokens = tensors["pixel_values"].numel() // model.patch_values // model.merged
    row = Row(
        tokens=int(lengths.sum()), images=image_tokens // 16, image_tokens=image_tokens,
        answers=int((tensors["labels"] >= 0).sum()), longest=int(lengths.max()), samples=len(lengths),
    )  # fmt: skip
    found = training(model, row, device=CPU, world=world, checkpointing=checkpointing, frozen=frozen)
    print(f"{found['peak'] / peak - 1:+.1%} of {peak / 1e6:.1f} MB: {world} x, {count} samples, {checkpointing}, {frozen}")
    assert abs(found["peak"] / peak - 1) < 0.15
