"""LeRobot's own package writes a set for us to read, and reads one that we wrote; run in its environment, not ours.

    python -m venv /tmp/lerobot && /tmp/lerobot/bin/pip install lerobot
    /tmp/lerobot/bin/python benchmarks/lerobot_exchange.py write out          # a set with a video, and out.npz
    python -m pipeline export_dataset <dataset> ours --format lerobot
    python -m pipeline export_dataset <dataset> ours.npz
    /tmp/lerobot/bin/python benchmarks/lerobot_exchange.py read ours ours.npz  # row by row the same

`tests/exchange/written_by_lerobot` is what version 0.4.4 wrote.
"""

import sys
from importlib.metadata import version

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torch.utils.data import DataLoader

LENGTHS = (7, 5, 9)


def write(folder: str) -> None:
    """Three episodes of numbers and of one colour a frame, as AV1 in one file; what was given beside it."""
    features = {
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["cos", "sin", "speed"]},
        "action": {"dtype": "float32", "shape": (1,), "names": ["torque"]},
        "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
        "next.done": {"dtype": "bool", "shape": (1,), "names": None},
        "observation.images.top": {"dtype": "video", "shape": (64, 96, 3), "names": ["height", "width", "channels"]},
    }
    dataset = LeRobotDataset.create("someone/swing", fps=10, features=features, root=folder, use_videos=True)
    rng, given = np.random.default_rng(0), []
    for length in LENGTHS:
        for step in range(length):
            numbers = rng.normal(size=3).astype(np.float32), rng.uniform(-2, 2, 1).astype(np.float32)
            reward, colour = np.float32([rng.normal()]), rng.integers(30, 220, 3).astype(np.uint8)
            given.append((*numbers, reward, colour))
            dataset.add_frame(
                {
                    "observation.state": numbers[0], "action": numbers[1], "next.reward": reward,
                    "next.done": np.array([step == length - 1]), "task": "swing",
                    "observation.images.top": np.broadcast_to(colour, (64, 96, 3)).copy(),
                }
            )  # fmt: skip
        dataset.save_episode()
    dataset.finalize()
    states, actions, rewards, pictures = (np.stack(column) for column in zip(*given, strict=True))
    np.savez(f"{folder}.npz", states=states, actions=actions, rewards=rewards, pictures=pictures, lengths=LENGTHS)
    print(f"lerobot {version('lerobot')} wrote {dataset.num_episodes} episodes, {dataset.num_frames} frames")


def read(folder: str, exported: str) -> None:
    """A set of ours, held to the plain .npz of the same dataset; with the action after each one, as policies ask."""
    dataset = LeRobotDataset("ours/set", root=folder, delta_timestamps={"action": [0.0, 1.0]})
    batch = next(iter(DataLoader(dataset, batch_size=len(dataset))))
    with np.load(exported) as known:
        lengths, observations, actions = (known[name] for name in ("lengths", "observations", "actions"))
    if len(observations) > len(actions):
        observations = np.delete(observations, np.cumsum(lengths + 1) - 1, axis=0)
    assert np.array_equal(batch["observation.state"].numpy(), observations)
    assert np.array_equal(batch["action"].numpy()[:, 0].ravel(), actions.ravel()), "actions differ"
    assert [int(episode["length"]) for episode in dataset.meta.episodes] == lengths.tolist()
    print(f"lerobot {version('lerobot')} read {len(lengths)} episodes, {len(actions)} rows: equal to {exported}")


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](*sys.argv[2:])
