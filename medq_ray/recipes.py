"""Named settings as functions; a variant calls another recipe and changes fields.

    medq run --recipe demo --run-dir runs/demo
"""

from collections.abc import Callable

from medq_ray.config import Config, Encoder, Evaluate, Evolve, Explore, Loop, Oracle, Review


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


RECIPES: dict[str, Callable[[int], Config]] = {"demo": demo, "demo_random": demo_random}


def build(name: str, seed: int = 0) -> Config:
    """The settings of a recipe. Raises ValueError naming the recipes there are."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; there are: {', '.join(sorted(RECIPES))}")
    return RECIPES[name](seed)
