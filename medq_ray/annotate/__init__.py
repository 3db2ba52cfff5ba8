"""Phase 2b: labels for the selected images, from the oracle and the model itself, routed by entropy (Sec. 2.3)."""

from medq_ray.annotate.preannotate import annotate

__all__ = ["annotate"]
