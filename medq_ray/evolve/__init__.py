"""Phase 3 of the paper (Sec. 2.4): quality assurance of the annotations, then full-parameter fine-tuning."""

from medq_ray.evolve.phase import evolve as evolve
