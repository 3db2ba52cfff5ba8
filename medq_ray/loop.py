"""The closed loop: evaluate -> explore -> annotate -> review -> evolve, until the dev score plateaus.

    medq run --recipe demo --run-dir runs/demo

Every phase is a step of the run directory (`artifacts.Run.step`), so the same command resumes a killed run. Model
servers start when a step first needs them: a run whose steps are all done starts none.
"""

import fcntl
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from medq_ray import config as settings
from medq_ray.annotate import annotate
from medq_ray.artifacts import Run, Step, digest_folder, difference, read_json, write_json
from medq_ray.config import Config
from medq_ray.console import progress, quiet, say
from medq_ray.evaluate import evaluate
from medq_ray.evaluate.scoring import compare
from medq_ray.evolve import evolve
from medq_ray.explore import explore
from medq_ray.ledger import Ledger
from medq_ray.model.ask import ask
from medq_ray.model.chat import Endpoint, Sampling
from medq_ray.model.deploy import resolve_checkpoint, serve_checkpoint
from medq_ray.pool.ingest import ingest
from medq_ray.review import review
from medq_ray.synthetic.oracle import serve_oracle
from medq_ray.synthetic.truth import load_truth
from medq_ray.synthetic.world import World, read_world, write_world

LOG = "log.txt"
PHASES = ("evaluate", "explore", "annotate", "review", "evolve")


def run(config: Config, run_dir: Path) -> dict:
    """Run the loop, or finish it, in `run_dir`; returns what `summary.json` holds (see DESIGN and README).

    Raises ValueError for settings that do not fit the directory and for input that cannot be used, EndpointError when
    a model cannot be reached; what was computed until then stays.
    """
    run_dir = Path(run_dir).resolve()
    with claimed(run_dir, config), quiet(run_dir / LOG), ray_session():
        loop = Loop(Run(run_dir), config)
        iterations, stopped = [], "max_iterations"
        checkpoint, origin = resolve_checkpoint(config.engine.checkpoint), "base"
        best = -1.0
        for t in range(config.loop.max_iterations + 1):
            say(f"\niteration {t}: {origin}")
            last = t == config.loop.max_iterations
            with Servers() as servers:
                evaluated = loop.evaluate(t, checkpoint, servers)
                accuracy = evaluated.json("metrics")["dev"]["accuracy"]
                if not last and t > 0 and accuracy < best + config.loop.plateau:
                    last, stopped = True, "plateau"
                best = max(best, accuracy)
                if not last:
                    loop.explore(t)
                    loop.annotate(t, checkpoint, servers)
            if not last:
                loop.review(t)
                evolved = loop.evolve(t, checkpoint)
                origin = f"iter-{t:02d}/evolve/checkpoint"
            iterations.append(loop.summarise(t, last))
            write_summary(loop, iterations, stopped)
            if last:
                break
            checkpoint = evolved.path / "checkpoint"
        return write_summary(loop, iterations, stopped)


class Servers(ExitStack):
    """The model servers of one iteration: each starts when it is first asked, and stops with the iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.started: dict[str, Endpoint] = {}

    def once(self, name: str, start: Callable[[], Endpoint]) -> Endpoint:
        if name not in self.started:
            self.started[name] = start()
        return self.started[name]


class Loop:
    """The phases of one run, each wired to its settings, inputs and models."""

    def __init__(self, run: Run, config: Config):
        self.run, self.config = run, config
        self.settings = settings.identity(config)
        self.ledger = Ledger(run.root / "ledger.jsonl")
        self.world = self.open_world()
        self.pool = self.step(
            "pool",
            lambda folder: ingest(folder, self.world.images, encoder=config.encoder),
            sections=("encoder",),
            inputs={"world": self.world.digest},
        )
        self.images = self.pool.table("images")
        ids = set(self.images["image_id"].to_pylist())
        self.questions = {
            split: asked_of(self.world.questions, self.images, split, ids) for split in ("dev", "test")
        }

    def step(self, name: str, work: Callable[[Path], dict | None], *, sections: tuple[str, ...], inputs: dict) -> Step:
        """A step whose identity is the named settings sections, the seed and the inputs."""
        before = self.run.finished(name)
        if before is None:
            say(f"  {name}")
        used = {section: self.settings[section] for section in sections} | {"seed": self.config.seed}
        step = self.run.step(name, work, settings=used, inputs=inputs)
        if before is None:
            self.ledger.add(step=name, what="wall time", amount=step.manifest["seconds"], unit="seconds")
            say(f"  {name}: {describe_counts(step)} in {step.manifest['seconds']:.0f} s")
        else:
            say(f"  {name}: done before")
        return step

    def done(self, t: int, phase: str) -> Step | None:
        return self.run.finished(f"iter-{t:02d}/{phase}")

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

    def split(self, name: str) -> pa.Table:
        return self.images.filter(pc.equal(self.images["split"], name))

    def asker(self, step: str, name: str, endpoint: Callable[[], Endpoint], simulated: bool) -> Callable[..., pa.Table]:
        """A phase's way to ask one model: (prompts, sampling, label) -> completions, answers kept in the cache."""

        def answer(prompts: pa.Table, sampling: Sampling, label: str) -> pa.Table:
            completions = ask(prompts, endpoint(), sampling, self.run.root / "cache" / name, label)
            self.ledger.add(step=step, what=f"{name.partition('-')[0]} output", unit="tokens",
                            amount=pc.sum(completions["tokens"]).as_py() or 0, simulated=simulated)  # fmt: skip
            return completions

        return answer

    def model(self, t: int, checkpoint: Path, servers: "Servers") -> Callable[[], Endpoint]:
        """The checkpoint under training, served when first asked."""
        engine = self.config.engine

        def start() -> Endpoint:
            name = f"iteration-{t}"
            url = engine.base_url or servers.enter_context(serve_checkpoint(checkpoint, name, engine))
            return self.endpoint(url, name, digest_folder(checkpoint))

        return functools.partial(servers.once, "model", start)

    def oracle(self, servers: "Servers") -> Callable[[], Endpoint]:
        """The oracle in the settings; the simulated one starts when first asked."""
        oracle = self.config.oracle

        def start() -> Endpoint:
            url = oracle.base_url or servers.enter_context(serve_oracle(self.world.path, oracle, self.config.seed))
            identity = "" if oracle.base_url else f"{self.world.digest}-{oracle.edit_rate}-{oracle.reject_rate}"
            return self.endpoint(url, oracle.model, identity)

        return functools.partial(servers.once, "oracle", start)

    def endpoint(self, url: str, model: str, identity: str) -> Endpoint:
        engine = self.config.engine
        return Endpoint(base_url=url, model=model, identity=identity, concurrency=engine.concurrency,
                        retries=engine.retries, timeout=engine.timeout)  # fmt: skip

    def evaluate(self, t: int, checkpoint: Path, servers: "Servers") -> Step:
        step = f"iter-{t:02d}/evaluate"
        origin = "base" if t == 0 else self.done(t - 1, "evolve").fingerprint
        return self.step(
            step,
            lambda folder: evaluate(
                folder,
                config=self.config,
                dev=self.questions["dev"],
                test=self.questions["test"],
                images=self.split("dev"),
                answer=self.asker(step, f"model-{t:02d}", self.model(t, checkpoint, servers), simulated=False),
            ),
            sections=("evaluate",),
            inputs={"pool": self.pool.fingerprint, "world": self.world.digest, "checkpoint": origin},
        )

    def explore(self, t: int) -> Step:
        evaluated = self.done(t, "evaluate")
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
                pool=self.split("pool"),
                taken=taken,
            ),
            sections=("explore", "evolve"),  # near-duplicates are defined in evolve
            inputs={"evaluate": evaluated.fingerprint} | {step.path.parent.name: step.fingerprint for step in earlier},
        )

    def annotate(self, t: int, checkpoint: Path, servers: "Servers") -> Step:
        step = f"iter-{t:02d}/annotate"
        explored = self.done(t, "explore")
        simulated = self.config.oracle.base_url is None
        ask_self = self.asker(step, f"model-{t:02d}", self.model(t, checkpoint, servers), simulated=False)
        return self.step(
            step,
            lambda folder: annotate(
                folder,
                config=self.config,
                iteration=t,
                questions=explored.table("questions"),
                ask_oracle=self.asker(step, "oracle", self.oracle(servers), simulated),
                ask_self=ask_self if t > 0 else None,
            ),
            sections=("annotate", "oracle"),
            inputs={"explore": explored.fingerprint},
        )

    def review(self, t: int) -> Step:
        annotated = self.done(t, "annotate")
        return self.step(
            f"iter-{t:02d}/review",
            lambda folder: review(
                folder,
                config=self.config,
                annotations=annotated.table("annotations"),
                questions=self.done(t, "explore").table("questions"),
                truth=load_truth(self.world.path),
            ),
            sections=("review",),
            inputs={"annotate": annotated.fingerprint},
        )

    def evolve(self, t: int, checkpoint: Path) -> Step:
        reviewed = self.done(t, "review")
        earlier = self.done(t - 1, "evolve") if t > 0 else None
        start = checkpoint if self.config.evolve.start_from == "last" else resolve_checkpoint(self.config.engine.checkpoint)
        held_out = self.images.filter(pc.not_equal(self.images["split"], "pool"))
        return self.step(
            f"iter-{t:02d}/evolve",
            lambda folder: evolve(
                folder,
                config=self.config,
                iteration=t,
                questions=self.done(t, "explore").table("questions"),
                annotations=self.done(t, "annotate").table("annotations"),
                verdicts=reviewed.table("verdicts"),
                earlier=None if earlier is None else earlier.table("train/samples"),
                images=self.images.select(["image_id", "phash", "sharpness", "noise"]),
                checkpoint=start,
                held_out=set(held_out["image_id"].to_pylist()),
            ),
            sections=("evolve",),
            inputs={"review": reviewed.fingerprint, "checkpoint": "base" if earlier is None else earlier.fingerprint},
        )

    def summarise(self, t: int, last: bool) -> dict:
        """One iteration's row of summary.json, read back from its steps."""
        metrics = self.done(t, "evaluate").json("metrics")
        row = {"t": t, "checkpoint": "base" if t == 0 else f"iter-{t - 1:02d}/evolve/checkpoint", **metrics}
        if not last:
            trained = self.done(t, "evolve").manifest["counts"]
            row |= {
                "selected": self.done(t, "explore").manifest["counts"],
                "routes": self.done(t, "annotate").json("routes")["routes"],
                "verdicts": self.done(t, "review").json("stats")["verdicts"],
                "dropped": {
                    name.removeprefix("dropped_"): count for name, count in trained.items() if name.startswith("dropped_")
                },
                "trained_on": trained["trained_on"],
            }
        steps = {phase: self.done(t, phase) for phase in PHASES}
        row["seconds"] = {phase: step.manifest["seconds"] for phase, step in steps.items() if step is not None}
        row["cost"] = self.ledger.total(f"iter-{t:02d}/")
        return row


def write_summary(loop: Loop, iterations: list[dict], stopped: str) -> dict:
    """Write summary.json: what a program reads."""
    first, last = loop.done(0, "evaluate"), loop.done(iterations[-1]["t"], "evaluate")
    summary = {
        "recipe": loop.config.recipe,
        "seed": loop.config.seed,
        "world": str(loop.world.path),
        "iterations": iterations,
        "comparison": {"base_to_last": compare(first.table("test_scores"), last.table("test_scores"))},
        "stopped": stopped,
    }
    write_json(loop.run.root / "summary.json", summary)
    return summary


def asked_of(questions: pa.Table, images: pa.Table, split: str, ids: set[str]) -> pa.Table:
    """The questions about a split's images that were ingested; quarantined images are not asked about."""
    wanted = set(images.filter(pc.equal(images["split"], split))["image_id"].to_pylist()) & ids
    return questions.filter(pc.is_in(questions["image_id"], pa.array(sorted(wanted), pa.string()))).sort_by("question_id")


def describe_counts(step: Step) -> str:
    """A manifest's counts in one short line."""
    flat = {key: value for key, value in step.manifest["counts"].items() if isinstance(value, int | float | str)}
    return ", ".join(f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}" for key, value in flat.items())


@contextmanager
def claimed(run_dir: Path, config: Config) -> Iterator[None]:
    """Hold the run directory for this process, under these settings.

    Raises ValueError when another process holds it or when it was made with other settings.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{run_dir} is in use by another run; wait for it or choose another --run-dir") from error
        path = run_dir / "run.yaml"
        now = settings.identity(config)
        if path.exists():
            before = settings.identity(settings.load(path))
            if before != now:
                raise ValueError(f"{run_dir} was made with {difference(before, now)}; use another --run-dir or the same settings")
        else:
            path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        yield


@contextmanager
def ray_session() -> Iterator[None]:
    """Attach to the cluster in RAY_ADDRESS, or to the job's, or start Ray on this machine for the run."""
    import ray

    started = not ray.is_initialized()
    if started:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=True)
        else:
            # The controller, proxy, ingress and engine of one model want about three logical CPUs, Ray Data and the
            # oracle more; they mostly wait for each other, so declare more logical CPUs than there are cores.
            ray.init(num_cpus=max(8, os.cpu_count() or 1), include_dashboard=False, log_to_driver=True)
    try:
        yield
    finally:
        if started:
            ray.shutdown()
