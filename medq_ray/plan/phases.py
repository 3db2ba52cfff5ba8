"""Memory and time of the five phases of an iteration on given GPUs.

Times are of the first iteration, where the oracle's labels are all reviewed, and of the last one, which trains on the
samples of all (`evolve.replay`). Floor 5.
"""

from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from medq_ray.config import Config, Judge, Oracle
from medq_ray.evolve.flops import PEAK, Sizes, step_flops
from medq_ray.plan.assumed import Assumed
from medq_ray.plan.memory import GPU, Row, serving, training
from medq_ray.plan.sizes import Model, sizes_of

GB = 1e9
BANDWIDTH = {"H200": 4.8e12, "H100": 3.35e12, "A100": 2.0e12, "L40S": 0.86e12, "A10G": 0.6e12}
"""Bytes a second by NVIDIA's data sheets (the SXM boards; A100 with 80 GB)."""
KINDS = 4
"""Questions about each image of dev and test; one of them asks for a description."""


@dataclass(frozen=True)
class Hardware:
    """GPUs of one node."""

    gpus: int
    gpu_memory: float
    """Bytes of each."""
    gpu: str = "A100"
    """One of BANDWIDTH's."""
    host_memory: float | None = None
    """Bytes of the node; None: nothing is said about it."""


@dataclass(frozen=True)
class Load:
    """What one question weighs."""

    image: int
    prompt: int
    """Tokens, those of the image included."""
    answers: dict[str, int]
    """Answer tokens by kind of question."""

    @classmethod
    def of(cls, model: Model, assumed: Assumed) -> "Load":
        image = model.image_tokens(assumed.image_side)
        letters = dict.fromkeys(("yes_no", "what", "how", "comparison"), assumed.letter_tokens)
        return cls(image, image + assumed.question_tokens, letters | {"description": assumed.description_tokens})

    def answer(self, kinds: tuple[str, ...]) -> float:
        """Answer tokens of a question on average."""
        return sum(self.answers[kind] for kind in kinds) / len(kinds)


def plan(config: Config, hardware: Hardware, checkpoint: str | None = None) -> dict[str, Any]:
    """{model, hardware, phases, fits, assumptions}: what a run of these settings needs. checkpoint: another than
    `engine.checkpoint`. Bytes and seconds.

    Each phase has gpu_memory (of the fullest GPU), host_memory (of the node), seconds {first, last}, fits and notes;
    where people review, seconds are None and people_seconds {first, last} theirs. Raises ValueError as `sizes_of`, and
    for a GPU that is not in BANDWIDTH.
    """
    if hardware.gpu not in BANDWIDTH:
        raise ValueError(f"nothing is known of a GPU {hardware.gpu!r}; there are: {', '.join(sorted(BANDWIDTH))}")
    assumed, model = Assumed(), sizes_of(checkpoint or config.engine.checkpoint)
    load = Load.of(model, assumed)
    served = engine(config, hardware, model, load, assumed)
    phases = {
        "evaluate": evaluate(config, hardware, model, load, assumed, served),
        "explore": explore(config, assumed),
        "annotate": annotate(config, hardware, model, load, assumed, served),
        "review": review(config),
        "evolve": evolve(config, hardware, model, load, assumed),
    }
    for phase in phases.values():
        enough = hardware.host_memory is None or phase["host_memory"] <= hardware.host_memory
        phase["fits"] = enough and phase.pop("fits_gpu", True)
    known = {name: (getattr(assumed, name), field.description) for name, field in Assumed.model_fields.items()}
    known |= {
        "peak_flops": (PEAK[hardware.gpu], f"dense bfloat16 operations a second of one {hardware.gpu}, by data sheet"),
        "bandwidth": (BANDWIDTH[hardware.gpu], f"bytes a second of one {hardware.gpu}'s memory, by data sheet"),
    }
    return {
        "model": {"name": model.name, "parameters": model.parameters, "total": model.total},
        "hardware": asdict(hardware),
        "phases": phases,
        "fits": all(phase["fits"] for phase in phases.values()),
        "assumptions": {name: {"value": value, "what": what} for name, (value, what) in known.items()},
    }


def phase(first: float | None, last: float | None, *, gpu: float = 0.0, host: float = 0.0, notes: list[str], **more):
    return {"gpu_memory": gpu, "host_memory": host, "seconds": {"first": first, "last": last}, "notes": notes, **more}


def engine(config: Config, hardware: Hardware, model: Model, load: Load, assumed: Assumed) -> dict[str, Any]:
    """Memory of the one engine that serves a checkpoint, on one GPU, and how many sequences it decodes at once."""
    longest, settings = config.engine.max_model_len, config.engine
    typical = load.prompt + assumed.description_tokens
    wanted = min(settings.max_num_seqs, settings.concurrency * config.evaluate.runs)
    needs = serving(model, sequence=typical, sequences=wanted)
    fixed = needs["weights"] + assumed.engine_bytes
    room = assumed.engine_share * hardware.gpu_memory - fixed
    cache = max(min(needs["cache"], room), needs["token"] * longest)
    notes = [f"vLLM on one GPU: weights {needs['weights'] / GB:.1f} GB, keys and values "
             f"{needs['token'] / 1e3:.0f} kB a token, room for {max(room, 0) / needs['token']:,.0f} tokens, "
             f"{cache / GB:.1f} GB wanted"]  # fmt: skip
    if settings.base_url is not None:
        notes = [f"asked at {settings.base_url}: that server's memory is not planned, its speed is taken as here"]
        return {"gpu": 0.0, "host": 0.0, "fits": True, "at_once": wanted, "typical": typical, "notes": notes}
    if longest > model.longest:
        notes.append(f"engine.max_model_len={longest} exceeds the model's {model.longest}")
    at_once = max(1, min(wanted, int(max(room, 0) // needs["sequence"])))
    fits = room >= needs["token"] * longest and longest <= model.longest
    return {"gpu": fixed + cache, "host": assumed.worker_bytes + needs["weights"], "fits": fits, "at_once": at_once,
            "typical": typical, "notes": notes}  # fmt: skip


def asked(
    prompts: int, answers: float, hardware: Hardware, model: Model, load: Load, assumed: Assumed, served: dict
) -> float:
    """Seconds of an engine for so many prompts and answer tokens. It has started with the iteration's evaluation."""
    patches = load.image * model.merged
    read = step_flops(flops_sizes(model), [load.prompt], 1, patches, load.image) / 3  # forward: two of six operations
    prefill = prompts * read / (PEAK[hardware.gpu] * assumed.prefill_utilisation)
    needs = serving(model, sequence=served["typical"], sequences=served["at_once"])
    step = (needs["weights"] + needs["cache"]) / (BANDWIDTH[hardware.gpu] * assumed.bandwidth_utilisation)
    return prefill + answers / served["at_once"] * step


def elsewhere(requests: float, model: Judge | Oracle, config: Config, assumed: Assumed) -> float:
    """Seconds until an oracle or judge has answered so many requests; its rate limit counts. The simulated one takes as
    long as it is told to."""
    each = config.oracle.latency if model.base_url is None else assumed.oracle_seconds
    limit = model.requests_per_minute
    return max(requests / config.engine.concurrency * each, 60 * requests / limit if limit else 0.0)


def evaluate(
    config: Config, hardware: Hardware, model: Model, load: Load, assumed: Assumed, served: dict
) -> dict[str, Any]:
    images, runs = config.world.dev_images + config.world.test_images, config.evaluate.runs
    questions = images * KINDS
    answer = min(load.answer(("yes_no", "what", "how", "description")), config.evaluate.max_tokens)
    seconds = asked(questions, questions * runs * answer, hardware, model, load, assumed, served)
    seconds += assumed.engine_start if config.engine.base_url is None else 0.0
    notes = [*served["notes"], f"{questions:,} questions about {images:,} images of dev and test, {runs} answers each"]
    if config.judge.base_url is not None:
        judged = images * runs * config.judge.rounds
        seconds += elsewhere(judged, config.judge, config, assumed)
        notes.append(f"{judged:,} descriptions go to the judge")
    return phase(seconds, seconds, gpu=served["gpu"], host=served["host"], notes=notes, fits_gpu=served["fits"])


def explore(config: Config, assumed: Assumed) -> dict[str, Any]:
    budget, kinds = config.explore.budget, len(config.explore.kinds)
    given = config.pool.path is not None or config.oracle.base_url is not None
    images = assumed.pool_images if given else config.world.pool_images
    written = budget * kinds if config.explore.questions == "capability" else 0
    seconds = elsewhere(written, config.oracle, config, assumed)
    notes = [f"{budget:,} of {images:,} images, {kinds} questions each, of which the oracle writes {written:,}"]
    return phase(seconds, seconds, host=assumed.worker_bytes + images * assumed.embedding_bytes, notes=notes)


def annotate(
    config: Config, hardware: Hardware, model: Model, load: Load, assumed: Assumed, served: dict
) -> dict[str, Any]:
    questions = config.explore.budget * len(config.explore.kinds)
    first = elsewhere(questions, config.oracle, config, assumed)
    again = ceil(questions * (1 + config.annotate.rescored))
    answers = again * load.answer(config.explore.kinds)
    last = first + asked(again, answers, hardware, model, load, assumed, served)
    notes = [f"{questions:,} questions to the oracle; after the first iteration to the model too", *served["notes"][:1]]
    return phase(first, last, gpu=served["gpu"], host=served["host"], notes=notes, fits_gpu=served["fits"])


def review(config: Config) -> dict[str, Any]:
    """People's time; when they give it is theirs to say."""
    questions = config.explore.budget * len(config.explore.kinds)
    later = questions * config.annotate.expert_share
    if config.review.reviewer == "simulated":
        return phase(0.0, 0.0, notes=[f"{questions:,} items at first, {later:,.0f} at most later: simulated"])
    each = config.review.seconds_per_item * (1 + config.review.double_share)
    notes = [f"{questions:,} items in the first iteration, {later:,.0f} at most in each other one, "
             f"{config.review.seconds_per_item:g} s each, {config.review.double_share:.0%} read twice"]  # fmt: skip
    return phase(None, None, notes=notes, people_seconds={"first": questions * each, "last": later * each})


def evolve(config: Config, hardware: Hardware, model: Model, load: Load, assumed: Assumed) -> dict[str, Any]:
    settings, kinds = config.evolve, config.explore.kinds
    answer = load.answer(kinds)
    sample = load.prompt + answer
    frozen = {part for part in model.parameters if not getattr(settings, f"train_{part}")}
    many = settings.max_tokens / sample
    row = Row(tokens=settings.max_tokens, images=ceil(many), image_tokens=ceil(many * load.image),
              answers=ceil(many * answer))  # fmt: skip
    needs = training(
        model, row, device=GPU, world=hardware.gpus, checkpointing=settings.activation_checkpointing, frozen=frozen
    )
    gpu = needs["peak"] * (1 + assumed.fragmentation) + assumed.framework_bytes
    # One worker has all weights as float32 at the start, and at the end beside them those that it exports.
    host = 6 * model.total + hardware.gpus * (1 + settings.loaders) * assumed.worker_bytes
    fresh = config.explore.budget * len(kinds)
    rounds = config.loop.max_iterations if settings.replay == "all" else 1
    useful = step_flops(flops_sizes(model), [round(sample)], round(answer), load.image * model.merged, load.image)
    computed = useful * (4 / 3 if settings.activation_checkpointing else 1)  # two of six operations once more
    rate = hardware.gpus * PEAK[hardware.gpu] * assumed.training_utilisation
    one = fresh * settings.epochs * computed / rate
    notes = [
        f"a GPU at its peak: weights {needs['weights'] / GB:.1f}, moments {needs['moments'] / GB:.1f}, gathered "
        f"{needs['gathered'] / GB:.1f}, gradients {needs['gradients'] / GB:.1f}, activations "
        f"{needs['activations'] / GB:.1f} GB",
        f"rows of {settings.max_tokens:,} tokens; {fresh:,} samples of {sample:.0f} tokens, {settings.epochs} epochs; "
        f"the last iteration has {rounds * fresh:,}",
    ]
    if settings.workers != hardware.gpus:
        notes.append(f"evolve.workers={settings.workers} is planned as {hardware.gpus}, one a GPU: set it")
    if sample > settings.max_tokens:
        notes.append(f"samples of {sample:.0f} tokens do not fit into evolve.max_tokens={settings.max_tokens}")
    start = assumed.training_start
    return phase(start + one, start + rounds * one, gpu=gpu, host=host, notes=notes, memory=needs,
                 fits_gpu=gpu <= hardware.gpu_memory and sample <= settings.max_tokens)  # fmt: skip


def flops_sizes(model: Model) -> Sizes:
    """As `evolve.flops` counts: embeddings are looked up, not passed."""
    looked_up = model.embedding if model.tied else model.embedding + model.head
    return Sizes(
        language=model.parameters["language"] - looked_up, head=model.head, vision=model.parameters["vision"],
        projector=model.parameters["projector"], width=model.language.width, layers=model.language.blocks,
    )  # fmt: skip
