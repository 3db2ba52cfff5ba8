"""Phase 2c: Accept / Edit / Reject verdicts on what the routing sends to experts (Sec. 2.3, Table 3)."""

from medq_ray.review.simulated import review

__all__ = ["review"]
