"""Hosts of their own: network namespaces joined by veth through a router, each link held to a rate by tc tbf."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cli.running import environment
from tests.dist.launching import Ended, free_port

_LIMIT_S = 280


def why_not() -> str | None:
    """Why namespaces cannot be used here; None if they can."""
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "ip and tc (iproute2) are not installed"
    name = f"eptry{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"network namespaces are not allowed here: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return None


@dataclass(frozen=True)
class Hosts:
    """Hosts host-0, host-1, ...; address of host i is 10.87.i.2."""

    names: tuple[str, ...]

    def run_ranks(self, arguments: Sequence[object], folder: Path) -> list[Ended]:
        """One rank on each host, with the same arguments and a rendezvous on the first."""
        words = [*map(str, arguments), "--worker", "--rendezvous", f"10.87.0.2:{free_port()}"]
        running = []
        for rank, name in enumerate(self.names):
            said = {"RANK": str(rank), "WORLD_SIZE": str(len(self.names)), "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}
            host = ["unshare", "--uts", "sh", "-c", f'hostname host-{rank}; exec "$@"', "sh"]
            running.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", name, *host, sys.executable, "-m", "planner", *words],
                    cwd=folder,
                    env=environment(**said),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    encoding="utf-8",
                )
            )
        try:
            found = [(process.communicate(timeout=_LIMIT_S), process.returncode) for process in running]
            return [Ended(code, out, err) for (out, err), code in found]
        finally:
            for process in running:
                process.kill()
                process.wait()


def _ip(*words: object) -> None:
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True)


@contextmanager
def hosts(rates: Sequence[str]) -> Iterator[Hosts]:
    """Hosts whose links to the router have these rates in both directions, such as `40mbit`."""
    tag = os.getpid()
    router = f"eprouter{tag}"
    names = tuple(f"ephost{tag}n{index}" for index in range(len(rates)))
    try:
        for name in (router, *names):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        forward = ["sysctl", "-qw", "net.ipv4.ip_forward=1"]
        subprocess.run(["ip", "netns", "exec", router, *forward], check=True)
        for index, (name, rate) in enumerate(zip(names, rates, strict=True)):
            _ip("-n", router, "link", "add", f"to{index}", "type", "veth", "peer", "name", "eth0", "netns", name)
            for where, device, address in ((router, f"to{index}", 1), (name, "eth0", 2)):
                _ip("-n", where, "addr", "add", f"10.87.{index}.{address}/24", "dev", device)
                _ip("-n", where, "link", "set", device, "up")
                shape = ["root", "tbf", "rate", rate, "burst", "16kb", "latency", "300ms"]
                subprocess.run(["tc", "-n", where, "qdisc", "add", "dev", device, *shape], check=True)
            _ip("-n", name, "route", "add", "default", "via", f"10.87.{index}.1")
        yield Hosts(names)
    finally:
        for name in (router, *names):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
