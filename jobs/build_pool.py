"""The ingest as a Ray job: `medq ingest` on the cluster that the job was submitted to.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python jobs/build_pool.py dicom /shared/ct --pool /shared/pool --split pool

Root and pool have to be on a file system that every node mounts at the same path. Submit the same command again to
finish a job that was stopped, or to take in what is new.
"""

import sys

from medq_ray.cli import main

if __name__ == "__main__":
    main(["ingest", *sys.argv[1:]])
