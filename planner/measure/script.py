"""Scripts that start a plan's ranks on a cluster: rank order, nodes and GPUs as in the plan, nothing guessed.

Every node starts its ranks in order of local GPU index, nodes in order, so that rank i is GPU i of the plan.
Hosts come from `--hosts` or from Slurm; where they do not, the script ends with an error instead of running
something smaller.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from planner.errors import UsageError
from planner.measure.seats import Seating

Launcher = Literal["torchrun", "slurm", "kubernetes"]

_HOST: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_PORT: Final = 29500
_AGENT_PORT: Final = 29499
"""Of torchrun's own store, which is another than that of the ranks."""


@dataclass(frozen=True)
class Launch:
    """What a script is made from."""

    seating: Seating
    arguments: tuple[str, ...]
    """Of `ep-plan validate`, without the launcher's."""
    hosts: tuple[str, ...] = ()
    image: str | None = None
    """Container image, for Kubernetes."""

    @property
    def gpus_of(self) -> list[list[int]]:
        """Local indices of the GPUs in service, node by node; nodes without any are left out."""
        nodes = sorted(set(self.seating.node_G.tolist()))
        return [self.seating.local_G[np.array(self.seating.node_G) == node].tolist() for node in nodes]

    @property
    def plan(self) -> str:
        """The plan file."""
        return self.arguments[0]


def launch_script(launcher: Launcher, launch: Launch) -> str:
    """The script.

    Raises:
        UsageError: the number of hosts is wrong, or an image is missing.
    """
    nodes = len(launch.gpus_of)
    if launch.hosts and len(launch.hosts) != nodes:
        hint = "in the order of the plan's nodes"
        raise UsageError(f"--hosts names {len(launch.hosts)} hosts, the plan has {nodes} nodes", hint=hint)
    strange = [host for host in launch.hosts if not _HOST.fullmatch(host)]
    if strange:
        raise UsageError(f"--hosts: {strange[0]!r} is no host name or address")
    unprintable = [word for word in (*launch.arguments, launch.image or "") if not word.isprintable()]
    if unprintable:  # neither a comment nor YAML can hold a line break or bytes that are no text
        hint = "paths of a launch script must be printable text in one line"
        raise UsageError(f"{unprintable[0]!r} cannot stand in a script", hint=hint)
    if launcher == "torchrun":
        if not launch.hosts:
            raise UsageError("--print-launch torchrun needs --hosts", hint="--hosts a,b,... in order of the nodes")
        return _torchrun(launch)
    if launcher == "slurm":
        return _slurm(launch)
    if launch.image is None:
        raise UsageError("--print-launch kubernetes needs --image", hint="an image with ep-plan[torch] in it")
    return _kubernetes(launch, launch.image)


def _table(launch: Launch) -> str:
    """Comment lines: which node has which ranks and GPUs, and which part of the plan they are."""
    lines, first = [], 0
    for node, gpus in enumerate(launch.gpus_of):
        host = f" ({launch.hosts[node]})" if launch.hosts else ""
        last = first + len(gpus) - 1
        stages = sorted({seat.stage for seat in launch.seating.seats[first : last + 1]})
        stage = f", stage {', '.join(map(str, stages))}" if launch.seating.plan.split.pp > 1 else ""
        lines.append(f"# node {node}{host}: ranks {first}..{last} on GPUs {_joined(gpus)}{stage}")
        first = last + 1
    return "\n".join(lines)


def _joined(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def _lists(launch: Launch) -> str:
    """GPUs of each node, as entries of an array."""
    return " ".join(f'"{_joined(gpus)}"' for gpus in launch.gpus_of)


def _quoted(words: Sequence[str]) -> str:
    return " ".join(map(shlex.quote, words))


def _worker(launch: Launch, meeting: str) -> str:
    return f"ep-plan validate {_quoted(launch.arguments)} --worker --rendezvous {meeting}"


def _torchrun_command(launch: Launch, host: str, node: str) -> str:
    """Torchrun with its static rendezvous, which neither pickles nor elects."""
    counts = _quoted([str(len(gpus)) for gpus in launch.gpus_of])
    visible = _lists(launch)
    return f"""\
ranks_of=({counts})
gpus_of=({visible})
export CUDA_VISIBLE_DEVICES="${{gpus_of[{node}]}}"
exec torchrun --nnodes={len(launch.gpus_of)} --node-rank="{node}" --nproc-per-node="${{ranks_of[{node}]}}" \\
  --master-addr="{host}" --master-port={_AGENT_PORT} --max-restarts=0 --no-python \\
  {_worker(launch, f'"{host}:{_PORT}"')}"""


def _torchrun(launch: Launch) -> str:
    nodes = len(launch.gpus_of)
    return f"""\
#!/usr/bin/env bash
# Validates {launch.plan}; start it on every node with the number of the node: bash launch.sh 0
# The plan and its traces must be readable under the same paths everywhere.
{_table(launch)}
set -euo pipefail
hosts=({_quoted(launch.hosts)})
node=${{1:?the number of this node, 0..{nodes - 1}}}
if [[ ! "$node" =~ ^[0-9]+$ ]] || ((node >= {nodes})); then
  echo "error: node $node: the plan has nodes 0..{nodes - 1}" >&2
  exit 2
fi
{_torchrun_command(launch, "${hosts[0]}", "$node")}
"""


def _slurm(launch: Launch) -> str:
    gpus_of = launch.gpus_of
    ranks = sum(map(len, gpus_of))
    most = max(max(gpus) for gpus in gpus_of) + 1
    named = f"#SBATCH --nodelist={shlex.quote(','.join(launch.hosts))}\n" if launch.hosts else ""
    counts = _quoted([str(len(gpus)) for gpus in gpus_of])
    visible = _lists(launch)
    return f"""\
#!/usr/bin/env bash
# Validates {launch.plan}; submit it: sbatch launch.sh
# The plan and its traces must be readable under the same paths everywhere.
{_table(launch)}
#SBATCH --job-name=ep-plan-validate
#SBATCH --nodes={len(gpus_of)}
#SBATCH --ntasks={ranks}
#SBATCH --gpus-per-node={most}
#SBATCH --exclusive
#SBATCH --time=00:30:00
{named}set -euo pipefail
names=$(scontrol show hostnames "$SLURM_JOB_NODELIST")  # ends here where scontrol is missing: no guess
mapfile -t hosts <<<"$names"
if [ "${{#hosts[@]}}" -ne {len(gpus_of)} ]; then
  echo "error: the plan has {len(gpus_of)} nodes, Slurm gave ${{#hosts[@]}}" >&2
  exit 7
fi
ranks_of=({counts})
gpus_of=({visible})
hostfile=$(mktemp)  # one line for each rank: rank order is the plan's, whatever Slurm's default is
trap 'rm -f "$hostfile"' EXIT
for node in "${{!hosts[@]}}"; do
  for ((i = 0; i < ranks_of[node]; i++)); do echo "${{hosts[node]}}"; done
done >"$hostfile"
export SLURM_HOSTFILE="$hostfile" EP_PLAN_GPUS="${{gpus_of[*]}}" EP_PLAN_MEETING="${{hosts[0]}}:{_PORT}"
# shellcheck disable=SC2016  # every task expands its own variables, not this script
srun --ntasks={ranks} --distribution=arbitrary --kill-on-bad-exit=1 bash -c '
  read -ra gpus_of <<<"$EP_PLAN_GPUS"
  export CUDA_VISIBLE_DEVICES="${{gpus_of[SLURM_NODEID]}}"
  exec "$@" --rendezvous "$EP_PLAN_MEETING"
' rank ep-plan validate {_quoted(launch.arguments)} --worker
"""


def _kubernetes(launch: Launch, image: str) -> str:
    nodes, most = len(launch.gpus_of), max(map(len, launch.gpus_of))
    return f"""\
# Validates {launch.plan}: kubectl apply -f launch.yaml
# Pod i is node i of the plan; the plan and its traces must be in the image or on a volume, under the same paths.
{_table(launch)}
{_SERVICE}---
{_job(nodes, image)}          args:
            - |
{_pod_script(launch)}
          resources: {{limits: {{nvidia.com/gpu: {most}}}}}
          securityContext: {{capabilities: {{add: [IPC_LOCK]}}}}
          volumeMounts: [{{name: shm, mountPath: /dev/shm}}]
      volumes: [{{name: shm, emptyDir: {{medium: Memory}}}}]
"""


def _pod_script(launch: Launch) -> str:
    """What each pod runs, as lines of a YAML block."""
    script = _torchrun_command(launch, "ep-plan-validate-0.ep-plan-validate", "$JOB_COMPLETION_INDEX")
    return "\n".join(f"              {line}" for line in f"set -euo pipefail\n{script}".splitlines())


_SERVICE: Final = """\
apiVersion: v1
kind: Service
metadata: {name: ep-plan-validate}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector: {job-name: ep-plan-validate}
"""
"""So that pod 0 has a name before it is ready."""


def _job(nodes: int, image: str) -> str:
    """The job up to the words that its containers run."""
    return f"""\
apiVersion: batch/v1
kind: Job
metadata: {{name: ep-plan-validate}}
spec:
  completionMode: Indexed
  completions: {nodes}
  parallelism: {nodes}
  backoffLimit: 0
  template:
    spec:
      subdomain: ep-plan-validate
      restartPolicy: Never
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            - topologyKey: kubernetes.io/hostname
              labelSelector: {{matchLabels: {{job-name: ep-plan-validate}}}}
      containers:
        - name: ranks
          image: {_yaml_text(image)}
          command: ["bash", "-c"]
"""


def _yaml_text(text: str) -> str:
    """A text that YAML reads as just this text."""
    return "'" + text.replace("'", "''") + "'"
