"""medq_ray: a closed loop on Ray that makes a vision-language model good at medical image quality assessment.

Read `README.md` for the tour. Importing this package switches usage reporting off and imports nothing heavy.
"""

import os

__version__ = "0.1.0"

# No telemetry (DESIGN): set before any of these libraries is imported, inherited by every child process.
for _name in ("RAY_USAGE_STATS_ENABLED", "VLLM_USAGE_STATS_ENABLED"):
    os.environ.setdefault(_name, "0")
for _name in ("VLLM_NO_USAGE_STATS", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
    os.environ.setdefault(_name, "1")
