"""Kubernetes: an indexed Job, one pod per node, and the service that gives the pods their names.

The first pod is the place where ranks meet, by its DNS name; there is no other to fall back to.
"""

from __future__ import annotations

from typing import Any

import yaml

from planner import __version__
from planner.errors import InputError, Place, Problem, UsageError
from planner.export.launch.nodes import check_equal, node_shares, summary
from planner.export.launch.options import LaunchOptions
from planner.export.layout import Layout

NAME = "ep-plan"
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
_RESOURCES = {"mi": "amd.com/gpu", "ascend": "huawei.com/Ascend910"}


def write(layout: Layout, options: LaunchOptions, version: str) -> str:
    """Two YAML documents; `$(NODE_RANK)` is replaced by Kubernetes, not by a shell."""
    del version
    shares = node_shares(layout, layout.ranks, "Kubernetes")
    check_equal(shares, "Kubernetes")
    local = len(shares[0].ranks)
    if any(share.devices != tuple(range(local)) for share in shares):
        message = "a pod gets GPUs 0, 1, ... of its node in order, the plan wants others or another order"
        raise InputError(Problem(message, Place("plan", key="stages"), "solve with whole nodes, GPUs in order"))
    if options.image is None or not options.program:
        raise UsageError("--image and --program are needed: what the pods run", hint='--program "train.py --steps 10"')
    command = ["torchrun", f"--nnodes={len(shares)}", "--node-rank=$(NODE_RANK)", f"--nproc-per-node={local}"]
    if len(shares) > 1:
        command += [f"--master-addr={NAME}-0.{NAME}", f"--master-port={options.port}"]
    command += [word.replace("$(", "$$(") for word in options.program]
    kind = layout.topology.gpu.name
    resource = next((name for start, name in _RESOURCES.items() if kind.startswith(start)), "nvidia.com/gpu")
    container = {
        "name": NAME,
        "image": options.image,
        "command": command,
        "env": [{"name": "NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": _INDEX}}}],
        "resources": {"limits": {resource: local}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],  # noqa: S108  # shared memory of the pod
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME},
        "spec": {"clusterIP": "None", "selector": {"job-name": NAME}, "publishNotReadyAddresses": True},
    }
    head = f"# Written by ep-plan {__version__}: {summary(layout, shares)}\n"
    documents = [service, _job(container, len(shares))]
    return head + yaml.safe_dump_all(documents, sort_keys=False, width=100, allow_unicode=True)


def _job(container: dict[str, Any], nodes: int) -> dict[str, Any]:
    """Every pod at once or none: a missing rank ends the job instead of hanging it."""
    spread = {
        "requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {"job-name": NAME}}, "topologyKey": "kubernetes.io/hostname"}
        ]
    }
    pod = {
        "subdomain": NAME,
        "restartPolicy": "Never",
        "affinity": {"podAntiAffinity": spread},
        "containers": [container],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }
    spec = {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimit": 0,
        "template": {"spec": pod},
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": NAME}, "spec": spec}
