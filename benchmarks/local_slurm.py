"""A SLURM cluster of one machine on loopback, without systemd: munged, slurmctld, slurmd; gone afterwards.

Debian: `apt-get install slurm-wlm munge`. It needs root, because slurmd begins jobs as their users.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

CONFIG = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,batch_sched_delay=1
ReturnToService=2
MpiDefault=none
KillWait=5
MinJobAge=600
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={processors} RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


@contextlib.contextmanager
def slurm(processors: int = 2) -> Iterator[Path]:
    """The cluster, and this process a machine that submits to it; its logs lie in the folder."""
    for program in ("munged", "slurmctld", "slurmd"):
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            raise RuntimeError(f"{program} is not installed; on Debian: apt-get install slurm-wlm munge")
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's name must be short
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key, config = folder / "munge.key", folder / "slurm.conf"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    ports = [_free_port(), _free_port()]
    text = CONFIG.format(host=host, controller=ports[0], node=ports[1], folder=folder, processors=processors)
    config.write_text(text, encoding="utf-8")
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(config)
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        files = [
            f"--{what}={folder}/munge.{what}" for what in ("key-file", "pid-file", "socket", "log-file", "seed-file")
        ]
        files[0] = f"--key-file={key}"
        for command in (
            ["munged", "--foreground", "--force", *files],
            ["slurmctld", "-D", "-c", "-f", str(config)],
            ["slurmd", "-D", "-c", "-N", host, "-f", str(config)],
        ):
            with (folder / f"{command[0]}.out").open("wb") as out:
                path = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"}
                daemons.append(subprocess.Popen(command, stdout=out, stderr=out, env=path, start_new_session=True))
            time.sleep(1)
        deadline = time.monotonic() + 60
        while (state := _state()) != "idle":
            if time.monotonic() > deadline:
                logs = "".join(log.read_text(errors="replace")[-2000:] for log in folder.glob("*.log"))
                raise RuntimeError(f"SLURM does not come up, its node is {state!r}: {logs}")
            time.sleep(0.5)
        yield folder
    finally:
        subprocess.run(["scancel", "--me"], capture_output=True)
        time.sleep(1)
        for daemon in reversed(daemons):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(daemon.pid, signal.SIGKILL)
                daemon.wait()
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before
        shutil.rmtree(folder, ignore_errors=True)


def _state() -> str:
    """Of the node: idle, mixed, down, ..."""
    answer = subprocess.run(["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True)
    return answer.stdout.strip()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
