"""A process that appends points to the spool, says so after each, and waits for its end: `<run id> <count or 0>`."""

import itertools
import sys
import time

from pipeline.tracking.operations import Metrics, measured
from pipeline.tracking.spool import Spool


def main() -> None:
    run_id, count = sys.argv[1], int(sys.argv[2])
    spool = Spool()
    for number in itertools.count(1):
        if number == count + 1 and count:
            time.sleep(600)
        spool.append(run_id, Metrics(points=measured([("loss", float(number), number)])))
        print(number, flush=True)


if __name__ == "__main__":
    main()
