"""A reviewer in a process of their own, to be killed: prints each verdict that the store said it has.

    python tests/review/writing_reviewer.py ADDRESS NAME

Says 'ready', then reads from standard input how many items to do next, and ends with it.
"""

import sys
from itertools import islice

from medq_ray.config import Review
from medq_ray.review.queue import Queue
from medq_ray.review.store import Store

if __name__ == "__main__":
    address, name = sys.argv[1:]
    queue = Queue(Store(address), Review())
    print("ready", flush=True)
    for line in sys.stdin:
        for lease in islice(iter(lambda: queue.lease(name), None), int(line)):
            given = queue.verdict(name, lease.token, "edit", after="B", reason=f"lease {lease.token}", seconds=0.0)
            print(given.event_id, lease.item_id, lease.token, flush=True)
