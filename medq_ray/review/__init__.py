"""Phase 2c: Accept / Edit / Reject verdicts on what the routing sends to experts (Sec. 2.3, Table 3)."""

from medq_ray.review import people, simulated
from medq_ray.review.people import AwaitingReview

__all__ = ["AwaitingReview", "people", "simulated"]
