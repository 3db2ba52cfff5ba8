"""The closed loop: evaluate -> explore -> annotate -> review -> evolve, until the dev score plateaus.

An iteration evaluates the newest checkpoint and goes on from the best (`promotion`): from this one or, if dev shows a
loss, from the one that served before.

    medq run --recipe demo --run-dir runs/demo

Every phase is a step of the run directory (`artifacts.Run.step`), so the same command resumes a killed run. Ray
and model servers start when a step first needs them: a run whose steps are all done starts none.
"""

import fcntl
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from medq_ray import config as settings
from medq_ray import promotion
from medq_ray.annotate import annotate
from medq_ray.artifacts import MANIFEST, Run, Step, difference, digest_folder, read_json, write_json
from medq_ray.config import Config
from medq_ray.console import progress, quiet, say
from medq_ray.evaluate import evaluate
from medq_ray.evaluate.compare import compare
from medq_ray.evaluate.prototypes import tfidf
from medq_ray.evolve import evolve
from medq_ray.explore import explore
from medq_ray.judging.judge import warnings
from medq_ray.judging.wording import wording_of
from medq_ray.ledger import Ledger
from medq_ray.model.deploy import resolve_checkpoint
from medq_ray.model.encoder import encoder_folder, text_embedder
from medq_ray.models import Models, Servers, check_keys
from medq_ray.pool.prepare import Given, check_pool, check_use, prepare, reviewable, with_pictures
from medq_ray.pool.store import open_pool
from medq_ray.review import people, simulated
from medq_ray.serving import ray_session
from medq_ray.synthetic.answers import MODEL as SIMULATED_ORACLE
from medq_ray.synthetic.truth import load_truth
from medq_ray.synthetic.world import World, read_world, write_world

LOG = "log.txt"
VERSIONS = {"evaluate": 2, "explore": 2, "annotate": 3, "review": 2, "evolve": 4}
"""Of phases whose results have changed under equal settings; a run of before is not finished with them."""
PHASES = ("evaluate", "explore", "annotate", "review", "evolve")


def run(
    config: Config, run_dir: Path, after: Callable[[dict], None] = lambda summary: None, *, wait: bool = False
) -> dict:
    """Run the loop, or finish it, in `run_dir`; returns what `summary.json` holds (see DESIGN and README).

    `after` is given the summary at the end of every iteration. wait: for people who review, instead of raising
    AwaitingReview. Raises ValueError for settings that do not fit the directory and for input that cannot be used,
    EndpointError when a model cannot be reached, EngineError when something in Ray died; what was computed until then
    stays.
    """
    run_dir = Path(run_dir).resolve()
    pool = check_inputs(config)
    with claimed(run_dir, config), quiet(run_dir / LOG), ray_session(run_dir / LOG):
        loop = Loop(Run(run_dir), config, pool, wait)
        iterations, stopped = [], None
        serving, still = 0, 0  # the iteration whose checkpoint serves; iterations in a row without a rise
        for t in itertools.count():
            say(f"\niteration {t}: {promotion.checkpoint_name(t)}")
            known = loop.done(t, "evolve") is not None
            with Servers() as servers:
                loop.evaluate(t, servers)
                decision = loop.promote(serving, t)
                if decision is not None:
                    serving = decision["serving"]["t"]
                    still = 0 if decision["difference"] >= config.loop.plateau else still + 1
                if serving != t:
                    servers.stop()  # what serves is another
                if t == config.loop.max_iterations:
                    stopped = "max_iterations"
                elif still == config.loop.patience:
                    stopped = "plateau"
                else:
                    loop.explore(t, serving, servers)
                    loop.annotate(t, serving, servers)
            if stopped is None:
                loop.review(t)
                loop.evolve(t, serving)
            iterations.append(loop.summarise(t))
            if not known:  # passing through what was done before changes nothing
                summary = write_summary(loop, iterations, serving, stopped)
                after(summary)
            if stopped is not None:
                return summary


def check_inputs(config: Config) -> Given | None:
    """Look at everything that the settings name before anything is written; the pool, if it is given.

    Raises ValueError or EndpointError.
    """
    encoder_folder(config.encoder.name)
    resolve_checkpoint(config.engine.checkpoint)
    oracle = config.oracle
    if oracle.base_url is None and oracle.model != SIMULATED_ORACLE:
        raise ValueError(f"oracle.model={oracle.model!r} needs oracle.base_url; only {SIMULATED_ORACLE!r} is built in")
    if oracle.edit_rate + oracle.reject_rate > 1:
        raise ValueError(f"oracle.edit_rate={oracle.edit_rate} and oracle.reject_rate={oracle.reject_rate} exceed 1")
    if config.world.path is not None:
        read_world(Path(config.world.path))
    pool = None if config.pool.path is None else check_pool(config)
    check_keys(config)
    if config.judge.base_url is not None:
        wording_of(config.judge)
        for line in warnings(config.judge.model, config.engine.checkpoint, config.oracle.model):
            say(f"warning: {line}")
    return pool


class Loop:
    """The phases of one run, each wired to its settings, inputs and models."""

    def __init__(self, run: Run, config: Config, given: Given | None, wait: bool):
        self.run, self.config, self.wait = run, config, wait
        self.settings = settings.identity(config)
        self.ledger = Ledger(run.root / "ledger.jsonl")
        encoder = encoder_folder(config.encoder.name)
        embedder = text_embedder(config.encoder.name, config.encoder.batch_size)
        self.texts = embedder if config.evaluate.text_features == "encoder" else tfidf
        self.models: Models | None = None  # until there is a world
        self.world = self.open_world()
        self.models = Models(config, run.root, self.world)
        own = run.root / "cache" / "pool"
        self.pooled = self.step(
            "pool",
            lambda folder: prepare(folder, world=self.world, config=config, given=given, own=own),
            sections=("encoder", "pool"),
            inputs={"world": self.world.digest, "pool": given.digest if given else "the world's",
                    "encoder": digest_folder(encoder) if encoder else config.encoder.name},  # fmt: skip
        )
        if given is None:  # the other was looked at before anything was written
            check_use(open_pool(own).rows(), config)
        self.pool = given.pool if given else open_pool(own)
        self.images = self.pooled.table("images")
        self.held_out = self.images.filter(pc.not_equal(self.images["split"], "pool"))["image_id"].to_pylist()

    def step(self, name: str, work: Callable[[Path], dict | None], *, sections: tuple[str, ...], inputs: dict) -> Step:
        """A step whose identity is the named settings sections, the seed and the inputs."""
        before = self.run.finished(name)
        if before is None:
            say(f"  {name}")

        def booked(folder: Path) -> dict | None:
            if self.models is None:
                return work(folder)
            self.models.step = name
            counts = work(folder)
            self.models.book(self.ledger)
            return counts

        used = {section: self.settings[section] for section in sections} | {"seed": self.config.seed}
        version = VERSIONS.get(name.rpartition("/")[2], 1)
        step = self.run.step(name, booked, settings=used, inputs=inputs, version=version)
        if before is None:
            self.ledger.add(step=name, what="wall time", amount=step.manifest["seconds"], unit="seconds")
            say(f"  {name}: {step.counts()} in {step.manifest['seconds']:.0f} s")
        else:
            say(f"  {name}: done before")
        return step

    def done(self, t: int, phase: str) -> Step | None:
        return self.run.finished(f"iter-{t:02d}/{phase}")

    def checkpoint(self, t: int) -> Path:
        """The folder of the checkpoint that iteration `t` evaluates."""
        if t == 0:
            return resolve_checkpoint(self.config.engine.checkpoint)
        return self.run.root / promotion.checkpoint_name(t)

    def open_world(self) -> World:
        """The world in the settings, or one written into the run directory."""
        chosen = self.config.world
        if chosen.path is not None:
            return read_world(Path(chosen.path))
        total = chosen.pool_images + chosen.dev_images + chosen.test_images

        def work(folder: Path) -> dict:
            with progress(total, "synthetic world") as bar:
                written = write_world(folder, total, self.config.seed, size=chosen.size, dev_images=chosen.dev_images,
                                      test_images=chosen.test_images, progress=bar.update)  # fmt: skip
            return {"images": sum(written["images"].values()), "degraded": written["degraded"]}

        return read_world(self.step("world", work, sections=("world",), inputs={}).path)

    def asked(self, split: str) -> pa.Table:
        """The world's questions about the images of a split."""
        images, questions = self.world.images, self.world.questions
        own = images.filter(pc.equal(images["split"], split))["image_id"].combine_chunks()
        return questions.filter(pc.is_in(questions["image_id"], own)).sort_by("question_id")

    def answered(self, evaluated: Step) -> pa.Table:
        """The dev questions that an evaluation got answers to."""
        scores, asked = evaluated.table("scores"), self.asked("dev")
        names = scores.filter(pc.is_valid(scores["error_rate"]))["question_id"].combine_chunks()
        return asked.filter(pc.is_in(asked["question_id"], names))

    def evaluate(self, t: int, servers: Servers) -> Step:
        origin = self.models.base if t == 0 else self.done(t - 1, "evolve").fingerprint
        return self.step(
            f"iter-{t:02d}/evaluate",
            lambda folder: evaluate(
                folder,
                config=self.config,
                dev=self.asked("dev"),
                test=self.asked("test"),
                images=with_pictures(self.pool.embedded(self.held_out), self.world.images),
                answer=self.models.checkpoint(t, self.checkpoint(t), servers),
                texts=self.texts,
                ask_judge=self.models.judge(),
            ),
            sections=("evaluate", "judge"),
            inputs={"pool": self.pooled.fingerprint, "world": self.world.digest, "checkpoint": origin},
        )

    def promote(self, serving: int, t: int) -> dict | None:
        """Decide whether the checkpoint of iteration `t` replaces that of iteration `serving`, and say why; None for
        the base, which is only looked at: raises ValueError when dev has nothing to compare."""
        before, after = (self.done(i, "evaluate") for i in (serving, t))
        found = compare(before.table("scores"), after.table("scores"))
        if t == 0:
            return None
        decided = self.step(
            f"iter-{t:02d}/{promotion.STEP}",
            lambda folder: promotion.promote(folder, self.run.root, found, serving, t),
            sections=(),
            inputs={"serving": before.fingerprint, "new": after.fingerprint},
        ).json("decision")
        say(f"  {decided['why']}")
        return decided

    def explore(self, t: int, serving: int, servers: Servers) -> Step:
        """Explore by the evaluation and the checkpoint of iteration `serving`."""
        evaluated = self.done(serving, "evaluate")
        earlier = [self.done(i, "explore") for i in range(t)]
        taken = {image for step in earlier for image in step.table("selection")["image_id"].to_pylist()}
        return self.step(
            f"iter-{t:02d}/explore",
            lambda folder: explore(
                folder,
                config=self.config,
                iteration=t,
                prototypes=evaluated.table("prototypes"),
                rates=evaluated.json("rates"),
                asked=self.answered(evaluated),
                failures=evaluated.table("failures"),
                images=self.images,
                allowed=reviewable(self.images, self.world, self.config)["image_id"].combine_chunks(),
                search=self.pool.search,
                embedded=self.pool.vectors,
                fetch=self.pool.fetch,
                ask_self=self.models.checkpoint(serving, self.checkpoint(serving), servers),
                ask_oracle=self.models.oracle(servers),
                taken=taken,
            ),
            sections=("explore", "evolve", "oracle"),  # near-duplicates are defined in evolve
            inputs={"evaluate": evaluated.fingerprint} | {step.path.parent.name: step.fingerprint for step in earlier},
        )

    def annotate(self, t: int, serving: int, servers: Servers) -> Step:
        explored = self.done(t, "explore")
        return self.step(
            f"iter-{t:02d}/annotate",
            lambda folder: annotate(
                folder,
                config=self.config,
                iteration=t,
                questions=explored.table("questions"),
                ask_oracle=self.models.oracle(servers),
                ask_self=self.models.checkpoint(serving, self.checkpoint(serving), servers),
                ask_judge=self.models.judge(),
            ),
            sections=("annotate", "oracle", "judge"),
            inputs={"explore": explored.fingerprint},
        )

    def review(self, t: int) -> Step:
        annotated, name = self.done(t, "annotate"), f"iter-{t:02d}/review"

        def work(folder: Path) -> dict:
            if self.config.review.reviewer == "people":
                counts = people.review(self.run.root, config=self.config, iteration=t, wait=self.wait)
            else:
                counts = simulated.review(
                    folder,
                    config=self.config,
                    annotations=annotated.table("annotations"),
                    questions=self.done(t, "explore").table("questions"),
                    truth=load_truth(self.world.path),
                )
            stats = read_json(folder / "stats.json")
            self.ledger.add(step=name, what="reviewer", amount=60 * stats["minutes"], unit="seconds",
                            simulated=stats["simulated"])  # fmt: skip
            return counts

        return self.step(name, work, sections=("review",), inputs={"annotate": annotated.fingerprint})

    def evolve(self, t: int, serving: int) -> Step:
        reviewed = self.done(t, "review")
        earlier = [self.done(i, "evolve") for i in range(t)]
        start = self.checkpoint(serving if self.config.evolve.start_from == "last" else 0)
        return self.step(
            f"iter-{t:02d}/evolve",
            lambda folder: evolve(
                folder,
                config=self.config,
                iteration=t,
                questions=self.done(t, "explore").table("questions"),
                annotations=self.done(t, "annotate").table("annotations"),
                verdicts=reviewed.table("verdicts"),
                earlier=pa.concat_tables([step.table("new") for step in earlier]) if earlier else None,
                images=self.images,
                checkpoint=start,
            ),
            sections=("evolve",),
            inputs={"review": reviewed.fingerprint,
                    "checkpoint": earlier[serving - 1].fingerprint if serving else self.models.base}
            # whose samples are trained on again, but not their checkpoints: those were not promoted
            | {step.path.parent.name: step.fingerprint for step in earlier[serving:]},  # fmt: skip
        )

    def summarise(self, t: int) -> dict:
        """One iteration's row of summary.json, read back from its steps."""
        decided = self.done(t, promotion.STEP)
        row = promotion.named(t) | {"promotion": decided and decided.json("decision")}
        row |= self.done(t, "evaluate").json("metrics")
        if evolved := self.done(t, "evolve"):
            trained = evolved.manifest["counts"]
            row |= {
                "selected": self.done(t, "explore").manifest["counts"],
                "routes": self.done(t, "annotate").json("routes")["routes"],
                "verdicts": self.done(t, "review").json("stats")["verdicts"],
                "dropped": {
                    name.removeprefix("dropped_"): count
                    for name, count in trained.items()
                    if name.startswith("dropped_")
                },
                "trained_on": trained["trained_on"],
            }
        steps = {phase: self.done(t, phase) for phase in PHASES}
        row["seconds"] = {phase: step.manifest["seconds"] for phase, step in steps.items() if step is not None}
        row["cost"] = self.ledger.total(f"iter-{t:02d}/")
        return row


def write_summary(loop: Loop, iterations: list[dict], serving: int, stopped: str | None) -> dict:
    """Write summary.json: what a program reads. `stopped` is why, None while the run goes on."""
    base, served, last = (loop.done(t, "evaluate").table("test_scores") for t in (0, serving, iterations[-1]["t"]))
    summary = {
        "recipe": loop.config.recipe,
        "seed": loop.config.seed,
        "world": str(loop.world.path),
        "iterations": iterations,
        "serving": promotion.named(serving),
        "comparison": {"base_to_serving": compare(base, served), "base_to_last": compare(base, last)},
        "stopped": stopped,
    }
    write_json(loop.run.root / "summary.json", summary)
    return summary


@contextmanager
def claimed(run_dir: Path, config: Config) -> Iterator[None]:
    """Hold the run directory for this process, under these settings.

    Raises ValueError when another process holds it or when it was made with other settings.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise ValueError(f"{run_dir} is a file; give --run-dir a folder")
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{run_dir} is in use by another run; wait for it or choose another --run-dir") from error
        path = run_dir / "run.yaml"
        now = settings.identity(config)
        if path.exists() and any(run_dir.rglob(MANIFEST)):  # before the first finished step, settings bind nothing
            before = settings.identity(settings.load(path))
            if before != now:
                hint = "use another --run-dir or the same settings"
                raise ValueError(f"{run_dir} was made with {difference(before, now)}; {hint}")
        else:
            temporary = path.with_name("run.yaml.tmp")
            temporary.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
            os.replace(temporary, path)
        yield
