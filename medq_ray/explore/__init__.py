"""Phase 2, exploring: which pool images, and which questions about them, are worth an annotation (paper Sec. 2.3)?"""

from medq_ray.explore.phase import explore

__all__ = ["explore"]
