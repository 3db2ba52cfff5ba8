"""Phase 1, evaluating: where does the model fail, how often, and what do the failures look like (paper Sec. 2.2)?"""

from medq_ray.evaluate.runs import evaluate

__all__ = ["evaluate"]
