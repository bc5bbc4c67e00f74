"""A real SLURM of one node with two processors, for the tests of the job scripts; all its files lie in one folder."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol")
CONFIGURATION = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
# A requeued job waits as long as its old credential is valid; SLURM takes nothing below five seconds for that.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
MailProg=/bin/true
KillWait=2
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def install() -> None:
    """Make sure that SLURM is here; skip the tests, with the reason, where it cannot be installed."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a SLURM of its own")
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        pytest.skip(f"SLURM is not installed ({', '.join(missing)}), and there is no apt-get")
    options = ["-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=20", "-o", "DPkg::Lock::Timeout=60"]
    packages = ["-y", "--no-install-recommends", "slurm-wlm", "munge"]
    # The packages would start their services; a policy of "no" keeps what is installed from running.
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        for command in (["apt-get", *options, "update", "-qq"], ["apt-get", *options, "install", *packages]):
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        pytest.skip("SLURM could not be installed: apt-get does not come to an end")
    finally:
        if ours:
            policy.unlink()
    if answer.returncode or any(shutil.which(name) is None for name in PROGRAMS):
        reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"SLURM could not be installed: {reason}")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """Start SLURM, yield the environment that its commands need, and stop it with all its jobs."""
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(host=host, folder=folder, ports=free_ports(2)))
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SRUN", "SQUEUE"))}
    environment["SLURM_CONF"] = str(configuration)
    files = {"key-file": key.name, "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
    files["seed-file"] = "munge.seed"
    munge = ["munged", "--foreground", "--force", *(f"--{k}={folder / v}" for k, v in files.items())]
    commands = {"munged": munge, "slurmctld": ["slurmctld", "-D"], "slurmd": ["slurmd", "-D", "-N", host]}
    daemons: dict[str, subprocess.Popen] = {}
    try:
        for name, command in commands.items():
            with open(folder / f"{name}.out", "wb") as log:
                daemons[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
            if name == "munged":
                wait(lambda: (folder / "munge.socket").exists(), 20)
        up = wait(lambda: ask(environment, "sinfo", "-h", "-o", "%T") == "idle", 40)
        if not up:
            logs = [f"{name}: {(folder / f'{name}.out').read_text()[-600:]}" for name in commands]
            pytest.skip("SLURM does not start here:\n" + "\n".join(logs))
        yield environment
    finally:
        if "slurmd" in daemons and daemons["slurmctld"].poll() is None:
            subprocess.run(["scancel", "--full", "--user", "root"], env=environment, capture_output=True, timeout=30)
            wait(lambda: ask(environment, "squeue", "-h") == "", 20)
        for daemon in reversed(daemons.values()):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def ask(environment: dict[str, str], *command: str) -> str:
    """What a command of SLURM answers; its error where it fails."""
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return (answer.stdout if answer.returncode == 0 else f"failed: {answer.stderr}").strip()


def wait(condition, seconds: float) -> bool:
    """Whether ``condition`` became true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
