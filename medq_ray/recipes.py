"""Named settings as functions; a variant calls another recipe and changes fields.

    medq run --recipe demo --run-dir runs/demo
"""

from collections.abc import Callable

from medq_ray.config import Config, Encoder, Evaluate, Evolve, Explore, Loop


def demo(seed: int = 0) -> Config:
    """One closed loop on the embedded models and the synthetic world, on two cores in about ten minutes."""
    return Config(
        recipe="demo",
        seed=seed,
        encoder=Encoder(name="embedded"),
        evaluate=Evaluate(max_tokens=40),
        explore=Explore(budget=400, random_fraction=0.3),
        evolve=Evolve(learning_rate=5e-4, batch_size=48, tfidf_keep=8),
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
