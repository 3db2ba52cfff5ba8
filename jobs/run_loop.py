"""The loop as a Ray job: `medq run` on the cluster that the job was submitted to.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python jobs/run_loop.py --recipe demo --run-dir /shared/runs/demo --set explore.budget=200

The run directory has to be on a file system that every node mounts at the same path. Submit the same command again
to resume a job that was stopped. Where people review, add --wait: a job that stops for them, with exit code 3, counts
as failed.
"""

import sys

from medq_ray.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
