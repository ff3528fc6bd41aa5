"""A process that appends points to the outbox, says so after each, and waits for its end: `<run id> <count or 0>`."""

import itertools
import sys
import time

from pipeline.tracking import operations
from pipeline.tracking.outbox import Outbox, RunOutbox


def main() -> None:
    run_id, count = sys.argv[1], int(sys.argv[2])
    outbox = RunOutbox(Outbox(), run_id)
    for number in itertools.count(1):
        if number == count + 1 and count:
            time.sleep(600)
        outbox.append(operations.metrics([("loss", float(number), number)]))
        print(number, flush=True)


if __name__ == "__main__":
    main()
