"""One process of a crowd: reads commands as JSON lines, does them to the store, answers as JSON lines."""

import json
import sys

from pipeline.errors import BadInput
from pipeline.tracking import registry
from pipeline.tracking.store import connect, experiment_id

TASK = "walk"


def obey(command: dict) -> object:
    client = connect()
    if command["do"] == "create":
        experiment = experiment_id(client, command["experiment"])
        client.create_run(experiment)
        return experiment
    version = client.get_model_version(f"{TASK}-expert", command["version"])
    if command["do"] == "approve":
        moved = registry.approve(client, version, command["run_id"], "simultaneous")
    else:
        moved = registry.roll_back(client, version, command["run_id"], "simultaneous")
    return [moved.version, moved.replaced]


def main() -> None:
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        try:
            answer = {"answer": obey(json.loads(line))}
        except BadInput as error:
            answer = {"refused": str(error)}
        except Exception as error:
            answer = {"crashed": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
