"""What a run will need: memory and time of each phase, before anything is fetched or started.

    medq plan --recipe internvl3_8b --gpus 8 --gpu-memory 80

Sizes come from the model's config, memory from `plan.memory`, times from `plan.phases`; what neither tells is assumed
(`plan.assumed`) and printed with its value.
"""

from medq_ray.plan.phases import Hardware, plan
from medq_ray.plan.text import described

__all__ = ["Hardware", "described", "plan"]
