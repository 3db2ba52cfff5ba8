"""Named settings as functions; a variant calls another recipe and changes fields.

    medq run --recipe demo --run-dir runs/demo
"""

from collections.abc import Callable

from medq_ray.config import Config, Encoder, Engine, Evaluate, Evolve, Explore, Judge, Loop, Oracle, Review, World

OPENAI = "https://api.openai.com/v1"


def demo(seed: int = 0) -> Config:
    """One closed loop on the embedded models and the synthetic world, on two cores."""
    return Config(
        recipe="demo",
        seed=seed,
        encoder=Encoder(name="embedded"),
        evaluate=Evaluate(max_tokens=40),
        # tau_sim for the embedded encoder, whose cosines lie higher than BiomedCLIP's: 0.90 within a cell on average.
        explore=Explore(tau_sim=0.85, budget=300, random_fraction=0.3, breadth=2),
        # GPT-4o's prices when it came out, so that the demo's ledger shows what its requests would have cost.
        oracle=Oracle(input_price=2.5, output_price=10.0),
        review=Review(reviewer="simulated"),
        # From one selection of 300 images dev accuracy (62.7 %) moved to 71.1 at 3e-4 in 80 steps of 48, to 72.7 at
        # 1e-4 in 240 of 16 and to 59.8 at 6e-4: a small model forgets the everyday faster than it learns the rare.
        # One run each; benchmarks/RESULTS.md has all of them.
        evolve=Evolve(learning_rate=1e-4, epochs=4, batch_size=12, answer_loss="mean", tfidf_keep=16),
        loop=Loop(max_iterations=2),
    )


def demo_random(seed: int = 0) -> Config:
    """The baseline of Table 2: the same budget, drawn at random from the pool."""
    base = demo(seed)
    return base.model_copy(
        update={"recipe": "demo_random", "explore": base.explore.model_copy(update={"strategy": "random"})}
    )


def paper(recipe: str, checkpoint: str, seed: int) -> Config:
    """The paper's experiment (Sec. 3.1) on a base model of the hub: what it states is as stated, and most of that is
    the defaults of `config`. World and pool are yours: set world.path and pool.path."""
    return Config(
        recipe=recipe,
        seed=seed,
        world=World(dev_images=500),  # of four questions each: about 2,000 samples in D_dev
        # One image of InternVL3 is up to 3,328 tokens (13 tiles of 256); two of them and a question have room.
        engine=Engine(checkpoint=checkpoint, max_model_len=8192, start_timeout=1800.0),
        encoder=Encoder(name="hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"),
        evaluate=Evaluate(runs=5, gamma=0.6, max_tokens=512),
        # The paper names no judge of its dev descriptions; MedQ-Bench's is gpt-4o.
        judge=Judge(base_url=OPENAI, model="gpt-4o", input_price=2.5, output_price=10.0),
        explore=Explore(tau_sim=0.75, budget=2000),
        oracle=Oracle(base_url=OPENAI, model="gpt-4o", input_price=2.5, output_price=10.0),
        review=Review(reviewer="people", seconds_per_item=30.0),
        evolve=Evolve(learning_rate=2e-5, epochs=3, workers=8),
        loop=Loop(max_iterations=5),
    )


def internvl3_8b(seed: int = 0) -> Config:
    """The paper's first model, on a node with eight GPUs of 80 GB."""
    return paper("internvl3_8b", "hf-hub:OpenGVLab/InternVL3-8B-hf", seed)


def qwen2_5_vl_7b(seed: int = 0) -> Config:
    """The paper's second model, on a node with eight GPUs of 80 GB."""
    return paper("qwen2_5_vl_7b", "hf-hub:Qwen/Qwen2.5-VL-7B-Instruct", seed)


RECIPES: dict[str, Callable[[int], Config]] = {
    recipe.__name__: recipe for recipe in (demo, demo_random, internvl3_8b, qwen2_5_vl_7b)
}


def build(name: str, seed: int = 0) -> Config:
    """The settings of a recipe. Raises ValueError naming the recipes there are."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; there are: {', '.join(sorted(RECIPES))}")
    return RECIPES[name](seed)
