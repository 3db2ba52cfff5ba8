"""Trains the embedded base model from scratch: `python -m medq_ray.model.assets.train vlm`.

The base starts where real ones start: competent on modalities and everyday degradations, blind to the
modality-specific ones, which no training image shows. Their names occur now and then as wrong options, so that the
wording is known; rarely, because a model that reads them only as wrong learns 'never' instead of 'not yet'.

It is put together as real models are. The vision tower comes from contrastive training on captions (the embedded
encoder's): it has seen glare, rings and double contours. The language model learns to read: it answers questions about
described images, all degradations among them, for knowing the word 'motion' is not having seen it. Then projector and
language model learn to answer about images, all of them clean or of everyday degradations; the tower is frozen. So the
base cannot name a modality-specific degradation, and can learn to from few examples.

Without reading, the loss of answering stayed for 1,400 steps where 'what' and 'how' are at chance. With a tower that
had seen everyday images only, linear probes separated the others at 53 %, no better than with a random tower (52 %),
and fine-tuning taught little.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from medq_ray import questions
from medq_ray.model import tiny
from medq_ray.model.assets.corpus import Drawn
from medq_ray.model.assets.optimise import batches, optimise, share_of
from medq_ray.model.prompts import render
from medq_ray.schema import DEGRADATIONS, EVERYDAY, KINDS, MODALITIES, PERCEPTION_KINDS, SEVERITIES
from medq_ray.synthetic.asking import ask_all

WEIGHTS = "open_clip_model.safetensors"
SPECIFIC_WORDING = 0.3
"""Share of 'what' questions that offer modality-specific names (always wrong here)."""
DESCRIPTION_WEIGHT = 0.25
"""Weight of a description's token beside a letter's: descriptions are long and mostly boilerplate."""


def training_question(row: Drawn, kind: str, rng: np.random.Generator) -> tuple[str, str]:
    """(prompt, answer) about a clean image or one with an everyday degradation."""
    modality, degradation, severity, _ = row
    if kind == "description":
        return questions.description(modality), questions.describe(modality, degradation, severity)
    if kind == "yes_no":
        asked = None
        if rng.random() < 0.5:
            usual = [name for name in DEGRADATIONS[modality] if name in EVERYDAY]
            others = [name for name in EVERYDAY if name != degradation]
            specific = [name for name in DEGRADATIONS[modality] if name not in EVERYDAY]
            luck = rng.random()
            if luck < 0.45 and degradation != "none":
                asked = degradation
            elif luck < 0.9:
                names = usual if degradation == "none" else others
                asked = names[rng.integers(len(names))]
            else:
                asked = specific[rng.integers(len(specific))]
        text, options = questions.yes_no(modality, asked)
    elif kind == "what":
        luck = rng.random()
        if luck < SPECIFIC_WORDING / 2:
            offered = list(DEGRADATIONS[modality])
        elif luck < SPECIFIC_WORDING:
            offered = questions.offered_with(modality, degradation if rng.random() < 0.9 else "none", rng)
        else:
            offered = list(EVERYDAY)
        text, options = questions.what(modality, offered, rng)
    else:
        text, options = questions.how(modality, bool(rng.random() < 0.5), rng)
    return render(text, options), questions.gold_letter(kind, text, options, degradation, severity)


def world_questions(plan: list[Drawn], seed: int) -> list[dict]:
    """Rows of schema.QUESTION, one of each kind for every image in order, as a world asks them."""
    truths = [{"image_id": str(i), **row._asdict()} for i, row in enumerate(plan)]
    return ask_all(truths, [""] * len(plan), seed)


class Turns:
    """Tokenised chat turns of one image each, with the image's place held by IMAGE_TOKENS tokens."""

    def __init__(self, processor):
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.prompt = lru_cache(maxsize=None)(self._prompt)
        self.answer = lru_cache(maxsize=None)(self._answer)

    def _prompt(self, prompt: str) -> list[int]:
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
        text = self.processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        held = f"<img>{'<IMG_CONTEXT>' * tiny.IMAGE_TOKENS}</img>"
        return self.tokenizer(text.replace("<IMG_CONTEXT>", held)).input_ids

    def _answer(self, answer: str) -> list[int]:
        return self.tokenizer(answer + tiny.END).input_ids

    def about_text(self, text: str, prompt: str) -> list[int]:
        """Ids of a turn in which a description stands where the image would."""
        turn = {"role": "user", "content": f"{text}\n{prompt}"}
        text = self.processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        return self.tokenizer(text).input_ids

    def batch(self, pairs: list[tuple[str | list[int], str]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids, weights), both (N, L) and padded on the right; weights are of predicting ids, 0 outside answers.

        A prompt is a text about an image or the ids of a whole turn.
        """
        prompts = [self.prompt(p) if isinstance(p, str) else p for p, _ in pairs]
        answers = [self.answer(a) for _, a in pairs]
        length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids = np.full((len(pairs), length), self.tokenizer.pad_token_id)
        weights = np.zeros((len(pairs), length), np.float32)
        for i, (p, a) in enumerate(zip(prompts, answers, strict=True)):
            ids[i, : len(p) + len(a)] = p + a
            weights[i, len(p) : len(p) + len(a)] = 1.0 if len(a) == 2 else DESCRIPTION_WEIGHT
        return torch.from_numpy(ids), torch.from_numpy(weights)


def pixels_of(images: np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W, 3) -> what the processor makes of it, float32 (N, 3, H, W)."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - tiny.MEAN) / tiny.STD


def image_tokens(model, pixels: torch.Tensor) -> torch.Tensor:
    """(N, IMAGE_TOKENS, WIDTH)."""
    return model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output


def hidden_states(model, tokens: torch.Tensor | None, ids: torch.Tensor) -> torch.Tensor:
    """(N, L, WIDTH) of N sequences about len(tokens) images, N / len(tokens) of them in a row for each image.

    Padding is on the right and attention is causal, so no mask is needed. No tokens, no images.
    """
    if tokens is None:
        return model.model.language_model(input_ids=ids, use_cache=False).last_hidden_state
    held = (ids == model.config.image_token_id)[..., None]
    repeated = tokens.repeat_interleave(len(ids) // len(tokens), 0).float()
    embedded = model.get_input_embeddings()(ids).masked_scatter(held, repeated)
    return model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state


def answer_loss(model, tokens: torch.Tensor | None, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted cross entropy of the answer tokens."""
    rows, columns = torch.nonzero(weights, as_tuple=True)
    logits = model.lm_head(hidden_states(model, tokens, ids[:, :-1])[rows, columns - 1])
    weights = weights[rows, columns]
    return (F.cross_entropy(logits, ids[rows, columns], reduction="none") * weights).sum() / weights.sum()


def load(images: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Pixels of a batch, each image mirrored with probability a half."""
    picked = images[np.sort(rows)][np.argsort(np.argsort(rows))]
    mirrored = rng.random(len(rows)) < 0.5
    picked[mirrored] = picked[mirrored, :, ::-1]
    return pixels_of(picked)


def learn_to_read(model, turns: Turns, steps: int, seed: int) -> None:
    """Stage 1: the language model alone, questions about descriptions of images of any cell."""
    draws = np.random.default_rng([seed, 0, share_of().start])

    def loss_of(step: int) -> torch.Tensor:
        plan = []
        for _ in range(32):
            modality = MODALITIES[draws.integers(len(MODALITIES))]
            degradation = ("none", *DEGRADATIONS[modality])[draws.integers(6)]
            severity = "none" if degradation == "none" else SEVERITIES[draws.integers(1, 3)]
            plan.append(Drawn(modality, degradation, severity, 0))
        pairs = []
        for asked in world_questions(plan, int(draws.integers(1 << 31))):
            if asked["options"]:
                text = questions.describe(*plan[int(asked["image_id"])][:3])
                pairs.append((turns.about_text(text, render(asked["text"], asked["options"])), asked["answer"]))
        return answer_loss(model, None, *turns.batch(pairs))

    optimise(list(model.model.language_model.parameters()), loss_of, steps, 2e-3, "read")


def take_tower(model, encoder: Path) -> None:
    """Copy the vision tower of the open_clip encoder in a folder, as InternVL starts from a contrastive tower."""
    from safetensors.torch import load_file

    loaded = load_file(encoder / WEIGHTS)
    weights = {name.removeprefix("visual."): w.float() for name, w in loaded.items() if name.startswith("visual.")}
    tower = {
        "embeddings.cls_token": weights["class_embedding"][None, None],
        "embeddings.position_embeddings": weights["positional_embedding"][None],
        "embeddings.patch_embeddings.projection.weight": weights["conv1.weight"],
        "embeddings.patch_embeddings.projection.bias": torch.zeros(tiny.WIDTH),
    }
    renamed = {
        "ln_1": "layernorm_before", "ln_2": "layernorm_after", "attn.out_proj": "attention.projection_layer",
        "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    }  # fmt: skip
    for number in range(model.config.vision_config.num_hidden_layers):
        theirs, ours = f"transformer.resblocks.{number}", f"encoder.layer.{number}"
        tower |= {f"{ours}.lambda_{i}": torch.ones(tiny.WIDTH) for i in (1, 2)}
        for kind in ("weight", "bias"):
            for old, new in renamed.items():
                tower[f"{ours}.{new}.{kind}"] = weights[f"{theirs}.{old}.{kind}"]
            for name, part in zip("qkv", weights[f"{theirs}.attn.in_proj_{kind}"].chunk(3), strict=True):
                tower[f"{ours}.attention.{name}_proj.{kind}"] = part
    model.model.vision_tower.load_state_dict(tower)


def learn_to_answer(model, turns: Turns, images: np.ndarray, plan: list[Drawn], steps: int, seed: int) -> None:
    """Stage 2: projector and language model, 16 images a step with one question of each kind, loss on answer tokens
    only. The vision tower stays as it is, so that it keeps what the encoder's training taught it."""
    rng = np.random.default_rng([seed, 2])
    queue = list(batches(len(plan), 16, steps, rng))
    draws = np.random.default_rng([seed, 2, share_of().start])

    def loss_of(step: int) -> torch.Tensor:
        rows = queue[step][share_of()]
        pairs = [training_question(plan[i], kind, draws) for i in rows for kind in KINDS]
        return answer_loss(model, image_tokens(model, load(images, rows, draws)), *turns.batch(pairs))

    model.model.vision_tower.requires_grad_(False)
    optimise([p for p in model.parameters() if p.requires_grad], loss_of, steps, 1e-3, "answer")
    model.requires_grad_(True)


@torch.no_grad()
def verdicts(
    model, turns: Turns, images: np.ndarray, plan: list[Drawn], seed: int = 0
) -> list[tuple[Drawn, str, bool]]:
    """(row, kind, right) of every perception question on every image, by the greedy first token."""
    asked = world_questions(plan, seed)
    model.eval()
    results = []
    for start in range(0, len(plan), 60):
        rows = plan[start : start + 60]
        tokens = image_tokens(model, pixels_of(np.array(images[start : start + 60])))
        for kind in PERCEPTION_KINDS:
            mine = [q for q in asked[start * len(KINDS) : (start + 60) * len(KINDS)] if q["kind"] == kind]
            ids, weights = turns.batch([(render(q["text"], q["options"]), q["answer"]) for q in mine])
            first = (weights > 0).float().argmax(1)
            each = torch.arange(len(rows))
            logits = model.lm_head(hidden_states(model, tokens, ids)[each, first - 1])
            right = logits.argmax(1) == ids[each, first]
            results += [(row, kind, ok) for row, ok in zip(rows, right.tolist(), strict=True)]
    model.train()
    return results


def table(results: list[tuple[Drawn, str, bool]]) -> str:
    """Markdown table of accuracies by cell group and kind, and one line for each cell."""

    def group(row: Drawn) -> str:
        return "clean" if row.degradation == "none" else "everyday" if row.degradation in EVERYDAY else "specific"

    def share(chosen: list[bool]) -> str:
        return f"{100 * np.mean(chosen):.1f} %"

    lines = ["| cells | " + " | ".join(PERCEPTION_KINDS) + " | all |", "|---" * 5 + "|"]
    groups = {"clean": ("clean",), "everyday": ("everyday",), "clean and everyday": ("clean", "everyday")}
    groups |= {"specific": ("specific",), "all": ("clean", "everyday", "specific")}
    for name, members in groups.items():
        mine = [r for r in results if group(r[0]) in members]
        cells = [share([ok for _, kind, ok in mine if kind == k]) for k in PERCEPTION_KINDS]
        lines.append(f"| {name} | " + " | ".join([*cells, share([ok for *_, ok in mine])]) + " |")
    lines.append("")
    by_cell: dict[str, list[bool]] = {}
    for row, _, ok in results:
        by_cell.setdefault(f"{row.modality}/{row.degradation}", []).append(ok)
    lines.append(", ".join(f"{cell} {share(oks)}" for cell, oks in by_cell.items()))
    return "\n".join(lines)


def train(images: np.ndarray, plan: list[Drawn], encoder: Path, steps: tuple[int, int], seed: int):
    """Tower from the encoder in a folder, then the two stages, each of its number of steps.

    Returns (model, processor, turns).
    """
    model, processor = tiny.build(seed)
    take_tower(model, encoder)
    model.train()
    turns = Turns(processor)
    read, answer = steps
    learn_to_read(model, turns, read, seed)
    learn_to_answer(model, turns, images, plan, answer, seed)
    return model, processor, turns
