"""Settings: one frozen, validated object describes a run completely.

Each field's docstring gives the paper's symbol, value and section, or says "our choice". Field names in
`HARDWARE_FIELDS` never enter a fingerprint: the same run on other hardware is the same run.
"""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class World(Section):
    path: str | None = None
    """A world written by `medq synth`; None lets the run write its own. Our choice."""
    pool_images: int = Field(8000, ge=10)
    """|U|, the unlabelled pool; the paper has about 1e6 (Sec. 2.1)."""
    dev_images: int = Field(150, ge=5)
    """Images of D_dev; four questions each. The paper has about 2000 samples (Sec. 3.1)."""
    test_images: int = Field(300, ge=5)
    """Images of D_test; four questions each."""
    size: int = Field(112, ge=56, le=1024)
    """Side of an image in pixels."""


class Pool(Section):
    path: str | None = None
    """A pool made by `medq ingest` and proven by `medq pool verify`, with the world's dev and test images in it; None
    makes one of the world's own images. Our choice."""
    acknowledged: tuple[str, ...] = ()
    """Sources whose terms forbid what this run does with their images, and that you may use for it all the same."""


class Engine(Section):
    base_url: str | None = None
    """An OpenAI-compatible endpoint to use as the model under training instead of serving its checkpoints. It must
    serve the checkpoint after N fine-tunings under the name 'iteration-N'; its key comes from ENGINE_API_KEY."""
    checkpoint: str = "embedded"
    """Base model M_theta: 'embedded' (shipped with the package), a Hugging Face checkpoint folder, or
    'hf-hub:ORG/NAME', which is fetched from the hub once."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where vLLM runs; 'auto' takes a GPU if Ray sees one."""
    max_model_len: int = Field(512, ge=64)
    """Longest prompt plus answer in tokens, image tokens included."""
    max_num_seqs: int = Field(64, ge=1)
    """Sequences decoded together. Set explicitly: engine defaults differ by hardware."""
    kv_cache_bytes: int = Field(1 << 28, ge=1 << 24)
    """Memory of the key-value cache on a CPU."""
    start_timeout: float = Field(300.0, gt=0)
    """Seconds until an engine that is not up counts as failed."""
    port: int = Field(0, ge=0, le=65535)
    """HTTP port on loopback; 0 takes a free one."""
    concurrency: int = Field(48, ge=1)
    """Requests in flight to one endpoint."""
    retries: int = Field(6, ge=0)
    """Attempts after the first for connection errors, 429 and 5xx, with exponential backoff and jitter."""
    timeout: float = Field(120.0, gt=0)
    """Seconds until one request counts as failed."""

    def limits(self) -> dict[str, float]:
        """What bounds the requests to any endpoint, as chat.Endpoint takes it."""
        return {"concurrency": self.concurrency, "retries": self.retries, "timeout": self.timeout,
                "patience": self.start_timeout}  # fmt: skip


class Encoder(Section):
    name: str = "embedded"
    """open_clip model: 'embedded', 'local-dir:PATH' or 'hf-hub:ORG/NAME'. The paper uses BiomedCLIP (Sec. 2.3)."""
    batch_size: int = Field(128, ge=1)
    """Images encoded together."""


class Evaluate(Section):
    runs: int = Field(5, ge=1)
    """R, answers a question (Sec. 3.1: 5)."""
    gamma: float = Field(0.6, ge=0, lt=1)
    """Failure threshold: a question fails when its error rate is strictly above (Sec. 3.1: 0.6)."""
    temperature: float = Field(0.7, ge=0)
    """Sampling temperature of the R runs. Not in the paper; our choice."""
    max_tokens: int = Field(48, ge=1)
    """Longest answer in tokens."""
    text_weight: float = Field(0.25, ge=0)
    """Weight of the question-answer features beside the visual ones in a failure's feature vector. Our choice: of
    twelve sets of planted weaknesses the cells were found with an adjusted Rand index of 0.86 (at 0.5: 0.83)."""
    text_features: Literal["encoder", "tfidf"] = "encoder"
    """What they are: the text embedding of the encoder (as BiomedCLIP's), or TF-IDF for one whose text tower was not
    made for such texts."""
    max_prototypes: int = Field(24, ge=2)
    """Largest N_c tried; the silhouette criterion chooses (Sec. 2.2)."""
    crossings: tuple[str, ...] = ("kind x modality",)
    """Pairs of capability axes whose error rates are reported besides those of single capabilities. Our choice."""
    trust_sight: bool = False
    """Go on where it cannot be told whether the model sees images; metrics.json then says so. Our choice."""


class Paid(Section):
    """A model of somebody else's, who takes money for tokens."""

    input_price: float = Field(0.0, ge=0)
    """Of a million prompt tokens, in any money; gpt-4o's was 2.50 dollars when it came out."""
    output_price: float = Field(0.0, ge=0)
    """Of a million tokens written; gpt-4o's was 10 dollars."""
    max_cost: float | None = Field(None, ge=0)
    """Most that a run may spend on it, in the same money; no request is sent that could cost more than is left. None:
    no limit."""
    requests_per_minute: float = Field(0.0, ge=0)
    """Its rate limit; 0: none."""
    tokens_per_minute: float = Field(0.0, ge=0)
    """Its rate limit, of prompts and longest answers together; 0: none."""
    batch: int = Field(0, ge=0, le=50_000)
    """Requests that are sent as one batch, where the endpoint offers OpenAI's Batch API: answered within a day, each
    attempt at a question too. 0: one by one, within minutes."""
    batch_price: float = Field(0.5, ge=0, le=1)
    """What a batch costs of the prices (OpenAI: half)."""

    @model_validator(mode="after")
    def priced(self) -> "Paid":
        if self.max_cost is not None and not (self.input_price and self.output_price):
            raise ValueError("max_cost limits nothing without input_price and output_price: set them too")
        return self

    def tariff(self) -> dict[str, float | str | None]:
        """What an answer costs and how fast it may be asked, as account.Tariff takes it."""
        return {name: getattr(self, name) for name in Paid.model_fields} | {"section": type(self).__name__.lower()}


class Judge(Paid):
    base_url: str | None = None
    """OpenAI-compatible endpoint of the judge of descriptions; its key comes from JUDGE_API_KEY. None: no judge, and a
    description is right when its fields agree with the reference's, which only the embedded world's can."""
    model: str = ""
    """Its model name; MedQ-Bench's is gpt-4o."""
    rounds: int = Field(1, ge=1)
    """Scores of each description and axis (official: 1)."""
    temperature: float = Field(0.0, ge=0)
    """Sampling temperature of the judge (official: 0)."""
    templates: str | None = None
    """A copy of MedQ-Bench's evaluator, for its rubrics to the letter; None takes ours."""
    least: dict[Literal["completeness", "preciseness", "consistency", "quality_accuracy"], float] = {
        "completeness": 1.0, "preciseness": 1.0, "consistency": 1.0, "quality_accuracy": 1.0}  # fmt: skip
    """Axis -> score (0 to 2) below which a run of a description is wrong. The paper does not say when a description is
    a failure; our choice: when it is as bad as can be on any axis."""


class Explore(Section):
    tau_sim: float = Field(0.75, ge=0, le=1)
    """Similarity threshold of eq. 2 (Sec. 3.1: 0.75, for BiomedCLIP; another encoder has another scale)."""
    alpha: float = Field(1.0, ge=0)
    """Exponent of w_k ~ e_k^alpha (Sec. 2.3). Its value is not in the paper; our choice."""
    budget: int = Field(2000, ge=1)
    """B, images selected an iteration (Sec. 3.1: 2000)."""
    random_fraction: float = Field(0.1, ge=0, le=1)
    """Share of B drawn at random, so that common cases are not forgotten and unknown failures found. Our choice."""
    breadth: float = Field(2.0, ge=1)
    """A share of b images is drawn from its breadth*b best look-alikes, for diversity. Our choice."""
    neighbours: int = Field(5, ge=0)
    """Dev images nearest to a look-alike that tell how likely it has the weakness; 0 ranks by similarity to prototypes
    alone, as the paper seems to. Our choice: of 60 selected images 73 to 83 % had a planted weakness instead of 67 to
    72 % (5 % of the pool)."""
    strategy: Literal["failure_driven", "random", "uniform_over_prototypes", "uncertainty", "coreset"] = (
        "failure_driven"
    )
    """What the budget is spent by: look-alikes of failures by error rate (the paper's), nothing (its baseline, Table
    2), look-alikes of all prototypes alike, the model's trajectory entropy, or greedy k-centres of embeddings."""
    candidates: int = Field(5, ge=1)
    """Random images that uncertainty and coreset look at for each one that they select. Our choice."""
    questions: Literal["capability", "seed_rule"] = "capability"
    """Written by the oracle, aimed at the weakness that selected the image; or from templates (Table 2)."""
    attempts: int = Field(3, ge=1)
    """Times that the oracle is asked for a question until it keeps the rules. Our choice."""
    kinds: tuple[Literal["yes_no", "what", "how", "description", "comparison"], ...] = (
        "yes_no", "what", "how", "description")  # fmt: skip
    """Questions asked of each selected image, each kind once; a comparison is with a selected image of the modality, of
    another patient, that looks like it."""

    @field_validator("kinds")
    @classmethod
    def once_each(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        if not kinds or len(set(kinds)) < len(kinds):
            raise ValueError("expected one or more kinds, each once")
        return kinds


class Oracle(Paid):
    base_url: str | None = None
    """OpenAI-compatible endpoint of the oracle; None starts the simulated one, which knows the synthetic truth."""
    model: str = "simulated-oracle"
    """Its model name; the paper's is gpt-4o (Sec. 3.1). The key comes from OPENAI_API_KEY."""
    edit_rate: float = Field(0.29, ge=0, le=1)
    """Simulated: share of plausible but wrong answers, to be edited (Table 3: 29 %)."""
    reject_rate: float = Field(0.08, ge=0, le=1)
    """Simulated: share of unusable answers, to be rejected (Table 3: 8 %)."""
    failure_rate: float = Field(0.0, ge=0, lt=1)
    """Simulated: share of requests that first meet HTTP 429, 500 or 503, nonsense or a delay, to exercise retries."""
    latency: float = Field(0.0, ge=0)
    """Simulated: seconds before each answer."""
    temperature: float = Field(0.0, ge=0)
    """Sampling temperature of the oracle. Our choice."""


class Annotate(Section):
    tau_entropy: float = Field(0.35, ge=0)
    """tau_H in nats a token: at or above, the model counts as uncertain (Sec. 2.3). Value is our choice; lowered in an
    iteration that would send more than `expert_share` to experts. `medq annotate --calibrate` proposes one."""
    tau_agreement: float = Field(0.7, ge=0, le=1)
    """tau_ann: below, self and oracle disagree (Sec. 2.3). Value is our choice: two descriptions that differ in the
    severity alone (0.6) disagree; with 0.5 six times as many wrong labels of the model's were taken."""
    agreement: Literal["fields", "judge"] = "fields"
    """How far two descriptions agree: by what they say of degradations, severity and grade (`annotate.agreement`), or
    by the judge's scores of the model's text beside the oracle's. Our choice."""
    dead_band: float | None = Field(None, ge=0)
    """Nats a token around tau_H within which a sample takes the safer route; None: what 95 % of the entropies moved by
    at most where the model annotated twice (nothing at all on a CPU). Our choice."""
    rescored: float = Field(0.05, ge=0, le=1)
    """Share of the samples that the model annotates twice, to see how many would take another route. Our choice."""
    expert_share: float = Field(0.18, ge=0, le=1)
    """Most of the annotations after the cold start that may go to experts, audits among them (Table 3: 18 %). What has
    no label otherwise goes to them all the same."""
    audit_share: float = Field(0.02, ge=0, le=1)
    """Share of the annotations that no expert would see of which one sees to it all the same, so that the error of
    unreviewed labels is measured. Our choice."""


class Review(Section):
    reviewer: Literal["people", "simulated"] = "people"
    """Who gives verdicts: people, for whom the run waits, or the simulated expert, who knows the synthetic truth."""
    store: str | None = None
    """The review store of people: a SQLite file or a postgresql:// address; None: review.db in the run directory."""
    seconds_per_item: float = Field(30.0, ge=0)
    """What the simulated expert books for one item (Table 3: 0.5 minutes)."""
    lease_minutes: float = Field(10.0, gt=0)
    """How long an item stays with a reviewer of whom nothing is heard. Our choice: twenty times what one takes."""
    double_share: float = Field(0.1, ge=0, le=1)
    """Share of the items that two reviewers read, neither seeing the other's verdict, for Cohen's kappa; 0 where there
    is one reviewer only. Not in the paper; our choice."""
    patients_together: bool = True
    """A reviewer is given what is left of a patient before another patient's, so that the questions about one image
    come one after another. Our choice."""


class Evolve(Section):
    learning_rate: float = Field(2e-5, gt=0)
    """Peak of the cosine schedule (Sec. 3.1: 2e-5, for 8B models)."""
    epochs: int = Field(3, ge=1)
    """Sec. 3.1: 3."""
    answer_loss: Literal["sum", "mean"] = "sum"
    """How the token losses of one answer are joined. Eq. 4 sums them; 'mean' lets a letter weigh as much as a
    description of 25 tokens, which a small model needs to keep its letters (our choice for the demo)."""
    batch_size: int = Field(48, ge=1)
    """Samples a step over all workers. Our choice."""
    warmup: float = Field(0.05, ge=0, le=1)
    """Share of steps with a rising learning rate. Our choice."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW. Our choice."""
    clip_norm: float = Field(1.0, gt=0)
    """Gradient norm limit. Our choice."""
    max_tokens: int = Field(8192, ge=16)
    """Tokens, image tokens included, that a worker computes on at once, and so the longest sample; a longer one is
    dropped with its reason. A step of more takes several rows. Our choice."""
    train_vision: bool = True
    """Whether the vision tower is trained (Sec. 2.4: full parameters)."""
    train_projector: bool = True
    """Whether the projector is."""
    train_language: bool = True
    """Whether the language model is."""
    activation_checkpointing: bool = True
    """Compute the activations of a block again in the backward pass instead of keeping them: a third more work, and 8B
    fit on 80 GB. Our choice."""
    workers: int = Field(2, ge=1)
    """FSDP2 workers."""
    min_workers: int | None = Field(None, ge=1)
    """Fewest workers to go on with where some were lost and no others can be had; None: `workers`. Our choice."""
    max_failures: int = Field(3, ge=0)
    """Deaths of workers after which one command goes on by itself. Our choice."""
    loaders: int = Field(1, ge=1)
    """Processes beside each worker that read, decode and encode samples ahead of it. Our choice."""
    checkpoint_every: int | None = Field(None, ge=1)
    """Steps between two checkpoints of a fine-tuning under way; None: one an epoch, which there always is. Our
    choice."""
    keep_checkpoints: int = Field(1, ge=1)
    """Newest checkpoints of a fine-tuning under way that are kept. Our choice."""
    start_from: Literal["last", "base"] = "last"
    """Checkpoint that each fine-tuning starts from. Our choice."""
    replay: Literal["all", "none"] = "all"
    """Samples of earlier iterations that a fine-tuning sees again. Eq. 4 draws from D_new, which is 'none'; our choice
    is all, so that what was learned first is not forgotten."""
    phash_radius: int = Field(4, ge=0, le=64)
    """Largest Hamming distance of duplicates' pHashes; their quality measures must agree too. Our choice."""
    quality_tolerance: float = Field(0.1, ge=0)
    """Largest relative difference of duplicates' quality measures. Our choice."""
    tfidf_threshold: float = Field(0.95, ge=0, le=1)
    """Descriptions at or above this TF-IDF cosine are near-duplicates (Sec. 2.4); value is our choice."""
    tfidf_keep: int = Field(1, ge=1)
    """Near-duplicate descriptions kept of each group. Our choice: 1 for free text; the embedded world's templates need
    more, since all images of one cell are described in the same words."""
    class_ratio: float | None = Field(None, ge=1)
    """How many times as frequent an answer may be as the others to its kind of question about its modality are on
    average (`evolve.balance`); of the surplus, samples that no expert has seen are dropped. None: any. Our choice: the
    loop asks for what the model fails at, and a label that was paid for is not lightly thrown away."""
    letter_ratio: float | None = Field(1.5, ge=1)
    """How many times its even share a letter may be the right one; the options of the surplus change places, nothing is
    dropped. None: any. Our choice: what dealing options at random leaves uneven stays below it (demo: 1.25 at most)."""


    @model_validator(mode="after")
    def trainable(self) -> "Evolve":
        if not (self.train_vision or self.train_projector or self.train_language):
            raise ValueError("nothing to train: set train_vision, train_projector or train_language")
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers={self.min_workers} exceeds workers={self.workers}")
        return self


class Loop(Section):
    max_iterations: int = Field(5, ge=1)
    """Fine-tunings at most. The paper reaches 10k samples at 2k each: 5."""
    plateau: float = Field(0.005, ge=0)
    """Dev accuracy has to rise by this over the checkpoint that serves, or the iteration counts as one without a rise
    (Sec. 2.4 gives no rule; our choice)."""
    patience: int = Field(2, ge=1)
    """Iterations in a row without a rise that stop the loop. With 1 it never goes on after a checkpoint that was not
    promoted. Our choice: one fine-tuning may fail; a second turn of labels that brings nothing is the last."""


class Config(Section):
    recipe: str = "custom"
    """Name of the recipe this came from."""
    seed: int = Field(0, ge=0)
    """Seed of everything that draws."""
    world: World = World()
    pool: Pool = Pool()
    engine: Engine = Engine()
    encoder: Encoder = Encoder()
    evaluate: Evaluate = Evaluate()
    judge: Judge = Judge()
    explore: Explore = Explore()
    oracle: Oracle = Oracle()
    annotate: Annotate = Annotate()
    review: Review = Review()
    evolve: Evolve = Evolve()
    loop: Loop = Loop()

    @model_validator(mode="after")
    def judged(self) -> "Config":
        if self.annotate.agreement == "judge" and not (self.judge.base_url and self.judge.model):
            raise ValueError("annotate.agreement=judge needs a judge: set judge.base_url and judge.model")
        return self


HARDWARE_FIELDS = {
    "pool": {"path", "acknowledged"},
    "engine": {"base_url", "device", "max_num_seqs", "kv_cache_bytes", "start_timeout", "port", "concurrency",
               "retries", "timeout"},
    "encoder": {"batch_size"},
    "judge": {"base_url", "templates", *Paid.model_fields},
    "oracle": {"base_url", "failure_rate", "latency", *Paid.model_fields},
    "review": {"store", "lease_minutes", "patients_together"},
    "evolve": {"activation_checkpointing", "workers", "min_workers", "max_failures", "loaders", "checkpoint_every",
               "keep_checkpoints"},
}  # fmt: skip


ADDRESSES = (
    *(("engine", "base_url"), ("oracle", "base_url"), ("judge", "base_url")),
    *(("judge", "templates"), ("pool", "path")),
)
"""Of these only whether there is one decides results."""


def identity(config: Config) -> dict[str, Any]:
    """The settings that decide results, as plain data: everything but HARDWARE_FIELDS. Of the addresses it keeps
    whether there is one: a server elsewhere may serve another model under the same name. A pool's content is an input
    of the run's steps."""
    data = config.model_dump(mode="json", exclude=HARDWARE_FIELDS)
    for name, field in ADDRESSES:
        data[name][field] = None if getattr(getattr(config, name), field) is None else "set"
    return data


def override(config: Config, assignments: list[str]) -> Config:
    """Apply 'section.field=value' strings (YAML values). Raises ValueError naming the setting and what is valid."""
    data = config.model_dump()
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set {assignment}: expected section.field=value")
        *path, field = key.strip().split(".")
        target = data
        for name in path:
            target = target.get(name) if isinstance(target, dict) else None
        if not isinstance(target, dict) or field not in target:
            known = ", ".join(sorted(target)) if isinstance(target, dict) else ", ".join(sorted(data))
            raise ValueError(f"unknown setting {key.strip()!r}; there are: {known}")
        try:
            target[field] = yaml.safe_load(value)
        except yaml.YAMLError:  # such as '@cf/llava', which YAML reserves
            target[field] = value
    return validated(data)


def validated(data: dict[str, Any]) -> Config:
    """Build a Config. Raises ValueError with one line for each wrong setting."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        lines = [
            ": ".join([*filter(None, [".".join(map(str, e["loc"]))]), e["msg"].removeprefix("Value error, ")])
            # an unknown setting might be a secret, and a whole section says nothing
            + (f" (got {e['input']!r})" if e["type"] != "extra_forbidden" and not isinstance(e["input"], dict) else "")
            for e in error.errors()
        ]
        raise ValueError("invalid settings: " + "; ".join(lines)) from error


def load(path: str | Path) -> Config:
    """Read a YAML settings file. Raises ValueError naming the file or the setting."""
    try:
        data = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"settings file {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"settings file {path} is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"settings file {path}: expected sections, found {type(data).__name__}")
    return validated(data)
