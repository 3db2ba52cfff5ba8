"""A reviewer in a process of their own, to be killed: prints each verdict that the store said it has.

    python tests/review/writing_reviewer.py ADDRESS NAME
"""

import sys

from medq_ray.config import Review
from medq_ray.review.queue import Queue
from medq_ray.review.store import Store

if __name__ == "__main__":
    address, name = sys.argv[1:]
    queue = Queue(Store(address), Review())
    print("ready", flush=True)
    sys.stdin.readline()  # until all are ready
    while lease := queue.lease(name):
        given = queue.verdict(name, lease.token, "edit", after="B", reason=f"lease {lease.token}", seconds=0.0)
        print(given.event_id, lease.item_id, lease.token, flush=True)
