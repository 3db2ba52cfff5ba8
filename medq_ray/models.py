"""The models of one run, as its phases ask them: the checkpoint under training, the oracle and the judge.

Each is an OpenAI-compatible endpoint; what is ours to serve starts when it is first asked what it has not answered.
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from medq_ray.artifacts import digest_folder, digest_of
from medq_ray.config import Config
from medq_ray.console import say
from medq_ray.ledger import Ledger
from medq_ray.model.account import FOLDER, SUMS, Tariff, usage
from medq_ray.model.ask import Answer, ask
from medq_ray.model.chat import Endpoint, Sampling
from medq_ray.model.deploy import resolve_checkpoint, serve_checkpoint
from medq_ray.privacy import Gate, is_external
from medq_ray.schema import COMPLETION
from medq_ray.synthetic.answers import MODEL as SIMULATED_ORACLE
from medq_ray.synthetic.oracle import serve_oracle
from medq_ray.synthetic.world import World

T = TypeVar("T")
OURS = "http://127.0.0.1/v1"
"""Stands for the address of what is ours to serve, until it has one."""
ENGINE_KEY, ORACLE_KEY, JUDGE_KEY = "ENGINE_API_KEY", "OPENAI_API_KEY", "JUDGE_API_KEY"
"""Environment variables of the keys of `engine.base_url`, `oracle.base_url` and `judge.base_url`."""


def check_keys(config: Config) -> None:
    """Raises EndpointError when the key of an endpoint in the settings is not there."""
    for section, key in ((config.engine, ENGINE_KEY), (config.oracle, ORACLE_KEY), (config.judge, JUDGE_KEY)):
        if section.base_url is not None:
            Endpoint(section.base_url, "", key_from=key).key()


class Servers(ExitStack):
    """The model servers of one iteration: each starts when it is first asked something new, and stops with the
    iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` gave under this name."""
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    def stop(self) -> None:
        """Stop those that have started; they may start again."""
        self.close()
        self.made.clear()


class Models:
    """What answers the questions of one run; answers are kept in its cache folder."""

    def __init__(self, config: Config, root: Path, world: World):
        self.config, self.root, self.world = config, root, world
        self.gate = Gate(root)
        self.step = ""
        """The step that is being done, for which requests are written down."""
        self.tag = digest_of(str(root))[:8]
        """Keeps our Serve apps and another run's on the same Ray apart."""
        self.base = digest_folder(resolve_checkpoint(config.engine.checkpoint))
        """Content of the base checkpoint."""

    def checkpoint(self, t: int, folder: Path, servers: Servers) -> Answer:
        """The checkpoint after `t` fine-tunings, which lies in `folder`."""
        engine, name = self.config.engine, f"iteration-{t}"

        def known() -> Endpoint:
            identity = self.base if t == 0 else digest_folder(folder)  # of an 8B model: 16 GB to read
            return self.endpoint(engine.base_url or OURS, name, identity, ENGINE_KEY)

        def start() -> str:
            return servers.enter_context(serve_checkpoint(folder, name, engine, app=f"{name}-{self.tag}"))

        return self.asker(f"model-{t:02d}", lambda: servers.once("model", known),
                          None if engine.base_url else lambda: servers.once("model's URL", start))  # fmt: skip

    def oracle(self, servers: Servers) -> Answer:
        """The oracle in the settings, or the simulated one."""
        oracle = self.config.oracle

        def known() -> Endpoint:
            identity = "" if oracle.base_url else f"{self.world.digest}-{oracle.edit_rate}-{oracle.reject_rate}"
            return self.endpoint(oracle.base_url or OURS, oracle.model, identity, ORACLE_KEY, oracle.tariff())

        def start() -> str:
            simulated = serve_oracle(self.world.path, oracle, self.config.seed, app=f"oracle-{self.tag}")
            return servers.enter_context(simulated)

        return self.asker("oracle", known, None if oracle.base_url else lambda: servers.once("oracle's URL", start))

    def judge(self) -> Answer | None:
        """The judge in the settings, None where there is none."""
        judge = self.config.judge
        if judge.base_url is None:
            return None
        return self.asker(
            "judge", lambda: self.endpoint(judge.base_url, judge.model, "", JUDGE_KEY, judge.tariff())
        )

    def endpoint(self, url: str, model: str, identity: str, key_from: str, tariff: dict | None = None) -> Endpoint:
        limits = self.config.engine.limits()
        return Endpoint(url, model, identity, key_from=key_from, tariff=Tariff(**tariff or {}), **limits)

    def asker(self, name: str, endpoint: Callable[[], Endpoint], serve: Callable[[], str] | None = None) -> Answer:
        """A phase's way to ask one model, its answers and their costs in the cache folder `name`. Of pictures that the
        gate holds, nothing is sent to another machine; their questions come back with that error. serve: starts what is
        ours to serve."""

        def answer(prompts: pa.Table, sampling: Sampling, label: str) -> pa.Table:
            asked, target = prompts, endpoint()
            held = {}
            if is_external(target.base_url):
                held = self.gate.held(uri for uris in prompts["uris"].to_pylist() for uri in uris)
                asked = prompts.filter(pa.array([not held.keys() & set(uris) for uris in prompts["uris"].to_pylist()]))
            found = ask(asked, target, sampling, self.root / "cache" / name, label, f"{self.step}: {label}", serve)
            if asked.num_rows == prompts.num_rows:
                return found
            say(f"  {prompts.num_rows - asked.num_rows} questions are not sent: their images seem to have text in them")
            rows = [
                {"question_id": row["question_id"], "run": run, "model": target.model, "text": "", "error": why}
                for row in prompts.to_pylist() for why in [held[uri] for uri in row["uris"] if uri in held][:1]
                for run in range(sampling.n)
            ]  # fmt: skip
            both = pa.concat_tables([found, pa.Table.from_pylist(rows, schema=COMPLETION)])
            return both.sort_by([("question_id", "ascending"), ("run", "ascending")])

        return answer

    def book(self, ledger: Ledger) -> None:
        """Write into the ledger what the step's answers cost, of the time before a kill too."""
        for folder in sorted(path.parent for path in (self.root / "cache").glob(f"*/{FOLDER}")):
            name = folder.name.partition("-")[0]
            asked = {"oracle": self.config.oracle.model, "judge": self.config.judge.model}.get(name)
            simulated = asked == SIMULATED_ORACLE  # it answers to no other name
            for what, amount in usage(folder, f"{self.step}: ").items():
                if amount:
                    ledger.add(step=self.step, what=f"{name} {what.replace('_', ' ')}", amount=amount, unit=SUMS[what],
                               simulated=simulated)  # fmt: skip
