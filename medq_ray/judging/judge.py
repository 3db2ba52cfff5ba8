"""The judge of descriptions and comparisons: asks it, parses its scores, averages them (MedQ-Bench's judge protocol).

One request for each axis of each item in each round, text only: the judge sees the expert's text and the candidate's,
never an image. Scores are 0 to 2 on each of four axes.
"""

import json
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.config import Judge
from medq_ray.judging.wording import AXES, Wording, fill, wording_of
from medq_ray.model.ask import Answer
from medq_ray.model.chat import Sampling
from medq_ray.schema import JUDGEMENT, PROMPT

ITEM = pa.schema([(name, pa.string()) for name in ("question_id", "task", "golden", "prediction")])
"""One text to be judged: task is description or comparison, golden the expert's, prediction null when missing."""
ATTEMPTS = 3
"""Requests for one score before it counts as missing (the official number)."""
MAX_TOKENS = 2048
"""Room for a judge that reasons at length before its score (the official client's default)."""
RESAMPLES = 1000
LABELLED = re.compile(r"Score\s*[:：]\s*([0-2](?:\.\d+)?)")
BARE = re.compile(r"[0-2](?:\.\d+)?")

FAMILIES = {
    "qwen": r"qwen|qwq|qvq|lingshu|intern(vl|lm|-s)",  # InternVL3 and Lingshu are built on Qwen2.5's weights
    "meta": r"llama|llava|vicuna|bimedix",  # LLaVA and BiMediX2 are built on Llama's unless the name says otherwise
    "mistral": r"mi[sx]tral|pixtral|magistral",
    "google": r"gemini|gemma",
    "anthropic": r"claude",
    "xai": r"grok",
    "deepseek": r"deepseek",
    "openai": r"(?<![a-z])(chat)?gpt|(^|/)o[134]\b",  # not HuatuoGPT, XrayGPT, MiniGPT
}
"""Family -> what its models' names contain, in lower case. The first that fits: whose weights a model was made from
comes before who trained it further, so a DeepSeek distilled into Qwen is a Qwen."""


def parse_score(reply: str) -> float | None:
    """The score in a judge's reply, None where there is none: the three official rules, the first hit counts.

    Total: no reply raises (the official code swallows what a JSON with deep brackets or huge integers raises), and
    none gives infinity or NaN, which no comparison with 0 and 2 admits. As there, rules (a) and (c) do not clamp:
    2.5 stays 2.5, and a 2 with seventeen nines behind the point is rounded to 3, the most there can be.
    """
    text = reply.strip()
    # (a) 'Score:' with a capital S, then a number whose first digit is 0, 1 or 2: 'Score: 10' is 1.
    if match := LABELLED.search(text):
        return float(match[1])
    # (b) The reply is JSON: a number from 0 to 2 (true is 1), or an object with one as its score or Score.
    if (number := _json_score(text)) is not None:
        return number
    # (c) The reply is a number and nothing else.
    return float(text) if BARE.fullmatch(text) else None


def _json_score(text: str) -> float | None:
    try:
        data = json.loads(text)
        if isinstance(data, dict):
            values = [data[name] for name in ("score", "Score") if name in data]
        else:
            values = [data] if isinstance(data, int | float) else []
        return next((number for number in map(float, values) if 0 <= number <= 2), None)
    except (ValueError, TypeError, OverflowError, RecursionError):  # no JSON, null, 400 digits, 3,000 brackets
        return None


def rubric(wording: Wording, task: str, axis: str, prediction: str | None, golden: str) -> str:
    """What the judge is asked about one axis of a description or comparison.

    The words MLLM DESC and GOLDEN DESC are replaced, so that the rubric's square brackets stay around the texts. A
    missing or empty prediction is judged as the text 'nan'. Identical to the official filling except for a prediction
    that contains the words GOLDEN DESC: there the official code would put the expert's text into it, and the candidate
    would be praised for having written it; here both places are filled at once, so that it cannot happen.
    """
    rubrics = {"description": wording.single, "comparison": wording.paired}[task]
    return fill(rubrics[axis], {"MLLM DESC": prediction or "nan", "GOLDEN DESC": golden})


def judge(
    items: pa.Table, answer: Answer, *, wording: Wording, model: str, rounds: int, temperature: float = 0.0,
    axes: Sequence[str] = AXES,
) -> pa.Table:  # fmt: skip
    """schema.JUDGEMENT of all items, sorted by (question_id, round, axis as in AXES).

    items: ITEM; answer: asks the judge, schema.PROMPT -> schema.COMPLETION; model: the judge's name for the record.
    Rounds and attempts differ in the seed, which changes nothing for a judge that decodes greedily: several rounds need
    a temperature to show its scatter. Raises ValueError when two items have one question_id.
    """
    asked = {f"{item['question_id']}/{axis}": (item, axis) for item in items.to_pylist() for axis in axes}
    if len(asked) < items.num_rows * len(axes):
        raise ValueError("two items to be judged have the same question_id")
    prompts = {
        name: rubric(wording, item["task"], axis, item["prediction"], item["golden"])
        for name, (item, axis) in asked.items()
    }
    rows = []
    for number in range(rounds):
        outcomes = _round(prompts, answer, number, temperature)
        for name, (item, axis) in asked.items():
            row = {"question_id": item["question_id"], "task": item["task"], "round": number, "axis": axis}
            rows.append(row | outcomes[name] | {"judge": model, "wording": wording.label})
    rows.sort(key=lambda row: (row["question_id"], row["round"], AXES.index(row["axis"])))
    return pa.Table.from_pylist(rows, schema=JUDGEMENT)


def judge_descriptions(
    rows: list[dict], answer: Answer, settings: Judge, axes: Sequence[str] = AXES
) -> pa.Table:
    """`judge` as the settings have it; rows: question_id, golden and prediction of descriptions. Raises ValueError too
    where the rubrics in the settings cannot be used."""
    items = pa.Table.from_pylist([row | {"task": "description"} for row in rows], schema=ITEM)
    return judge(items, answer, wording=wording_of(settings), model=settings.model, rounds=settings.rounds,
                 temperature=settings.temperature, axes=axes)  # fmt: skip


def _round(prompts: dict[str, str], answer: Answer, number: int, temperature: float) -> dict[str, dict]:
    """Name -> {score, attempts, reply} of one round: all prompts are asked at once, then those without a score again.

    Every attempt has a seed of its own, because equal requests are answered from the cache.
    """
    outcomes: dict[str, dict] = {}
    left = sorted(prompts)
    for attempt in range(ATTEMPTS):
        if not left:
            break
        rows = [{"question_id": name, "uris": [], "prompt": prompts[name]} for name in left]
        seed = ATTEMPTS * number + attempt
        sampling = Sampling(n=1, temperature=temperature, max_tokens=MAX_TOKENS, seed=seed, logprobs=False)
        label = f"judge, round {number + 1}" + (f", attempt {attempt + 1}" if attempt else "")
        for completion in answer(pa.Table.from_pylist(rows, schema=PROMPT), sampling, label).to_pylist():
            reply = completion["text"]
            outcome = {"score": parse_score(reply), "attempts": attempt + 1, "reply": reply}
            outcomes[completion["question_id"]] = outcome
        left = [name for name in left if outcomes[name]["score"] is None]
    return outcomes


def aggregate(judgements: pa.Table, seed: int = 0) -> dict:
    """Task -> {axis: {mean, scored, missing, ci95} for each of AXES, overall: {sum, ci95}, between_rounds, rounds,
    wording, judge}; judgements: schema.JUDGEMENT of one judge and one wording, else ValueError.

    Official: a mean is over items of the mean over their rounds, both over parsed scores only, and 0.0 where there is
    none. Missing scores are counted, never averaged. `overall` is the sum of the four means, 0 to 8, as published.
    `between_rounds` is the standard deviation of the overall over rounds, null for one round.

    `ci95` is a percentile bootstrap over items (1,000 resamples; the rounds of an item stay together, and so do its
    axes in the overall). It covers that other items could have been drawn and, with several rounds, the judge's own
    scatter as far as averaging has left it; not that another judge or another wording would lean another way. Null
    where fewer than two items have a score.
    """
    makers = set(zip(judgements["judge"].to_pylist(), judgements["wording"].to_pylist(), strict=True))
    if len(makers) > 1:
        raise ValueError(f"scores of several judges or wordings cannot be averaged: {sorted(makers)}")
    result = {}
    for task in sorted(set(judgements["task"].to_pylist())):
        summary = _summary(_cube(judgements.filter(pc.equal(judgements["task"], task))), seed)
        [(judge_model, wording)] = makers
        result[task] = summary | {"wording": wording, "judge": judge_model}
    return result


def _cube(judgements: pa.Table) -> np.ndarray:
    """float64 (rounds, items, axes) of the scores of one task, NaN where one is missing."""
    rounds, number = np.unique(judgements["round"].to_numpy(), return_inverse=True)
    items, item = np.unique(judgements["question_id"].to_pylist(), return_inverse=True)
    cube = np.full((len(rounds), len(items), len(AXES)), np.nan)
    cube[number, item, [AXES.index(axis) for axis in judgements["axis"].to_pylist()]] = judgements["score"].to_numpy()
    return cube


def _means(weights: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Weighted means over the first axis of `scores`, (n, ...), for weights (..., n); NaN counts nowhere, and the
    mean of nothing else is NaN."""
    scored = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        return np.tensordot(weights, np.where(scored, scores, 0.0), 1) / np.tensordot(weights, scored.astype(float), 1)


def _summary(cube: np.ndarray, seed: int) -> dict:
    """Means, counts and intervals of `aggregate` from scores (rounds, items, axes)."""
    rounds, n, _ = cube.shape
    items = _means(np.ones(rounds), cube)
    means = np.nan_to_num(_means(np.ones(n), items))
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)  # how often each is drawn
    drawn = _means(draws, items)
    enough = (~np.isnan(items)).sum(axis=0) >= 2
    missing = np.isnan(cube).sum(axis=(0, 1))
    axes = {
        axis: {
            "mean": round(float(means[i]), 6),
            "scored": rounds * n - int(missing[i]),
            "missing": int(missing[i]),
            "ci95": _interval(drawn[:, i]) if enough[i] else None,
        }
        for i, axis in enumerate(AXES)
    }
    overall = {
        "sum": round(float(means.sum()), 6),
        "ci95": _interval(drawn.sum(axis=1)) if enough.all() else None,
    }
    of_rounds = np.nan_to_num(_means(np.ones(n), cube.swapaxes(0, 1))).sum(axis=1)
    between = round(float(of_rounds.std(ddof=1)), 6) if rounds > 1 else None
    return axes | {"overall": overall, "between_rounds": between, "rounds": rounds}


def _interval(drawn: np.ndarray) -> list[float]:
    """The middle 95 % of bootstrap means; resamples without a score (NaN) say nothing."""
    return np.nanpercentile(drawn, [2.5, 97.5]).round(6).tolist()


def family(model: str) -> str:
    """A coarse family of models by name, '' when unknown. Our choice: whoever shares weights or a maker is of one
    family. Only the name is read, so a model that was trained further under another name is unknown."""
    name = model.lower()
    return next((known for known, pattern in FAMILIES.items() if re.search(pattern, name)), "")


def warnings(judge_model: str, candidate: str, oracle: str | None) -> list[str]:
    """One line for the candidate and one for the oracle, whose texts the candidate was trained on, where it is of the
    judge's family: judges prefer texts like their own."""
    return [
        f"judge {judge_model} and {role} {model} are of one family: its scores may favour texts like its own"
        for role, model in (("candidate", candidate), ("oracle", oracle))
        if model and (model == judge_model or family(model) == family(judge_model) != "")
    ]


def failed_axes(scores: Mapping[str, float | None], least: Mapping[str, float]) -> list[str]:
    """The axes on which a description fails: those with a score below the axis's threshold (our choice; the paper
    does not say when a description is a failure). A missing score is the judge's failure, not the description's."""
    return [axis for axis, bound in least.items() if (score := scores[axis]) is not None and score < bound]
