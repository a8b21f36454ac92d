"""Starting Ray on this machine, or joining one that runs; its complaints as one line."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import FastDiffusersError, InputError, MissingDependencyError, first_line
from .settings import ClusterSettings

NEEDED = ("ray", "a cluster", "pip install 'ray>=2.50'")
OBJECT_STORE_BYTES = 200 * 2**20
"""Of a Ray that is started here. Results go by file, so hardly anything is in it."""
CONNECT_SECONDS = 5.0
TOO_SLOW = "timed out during startup"
"""What Ray says when its own processes were not there within the half minute that it gives them."""
ALLOCATORS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Settings of torch's allocator that a host such as ComfyUI makes for itself; a worker has its card alone."""

LOCAL_ENVIRONMENT = {"RAY_gcs_rpc_server_reconnect_timeout_s": "20", "RAY_worker_niceness": "0"}
"""Of a Ray that is started here. Workers end with the driver; two helpers of Ray's own look for its head so long. And
workers are what somebody waits for, while Ray would put everything else before them."""


class ClusterError(FastDiffusersError):
    """The cluster cannot be had, or is gone."""


def require_ray() -> None:
    """Ask whether Ray is installed, without importing it. Raises MissingDependencyError, as `ray_module`."""
    if importlib.util.find_spec("ray") is None:
        raise MissingDependencyError(*NEEDED)


def ray_module() -> Any:
    """Ray, if it is installed.

    Raises:
        MissingDependencyError: it is not; the text says how to install it.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    try:
        import ray
    except ImportError:
        raise MissingDependencyError(*NEEDED) from None
    return ray


@contextmanager
def connected(settings: ClusterSettings) -> Iterator[Any]:
    """Ray, started for the block or joined. One that runs in this process already is used, and left running.

    Raises:
        MissingDependencyError: Ray is not installed.
        InputError: there are fewer cards than workers, or nothing listens at the address.
        ClusterError: Ray refuses.
    """
    ray = ray_module()
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "namespace": "fastdiffusers"}
    logging.getLogger("ray").setLevel(logging.ERROR)
    if settings.local:
        # Ray starts so many processes at once, each of which imports it: one for each worker, whatever its threads.
        options |= {"include_dashboard": False, "num_cpus": _workers_on_processor(settings)}
        options["object_store_memory"] = OBJECT_STORE_BYTES
    else:
        _check_somebody_listens(settings.address)
    try:
        with _environment(ALLOCATORS, LOCAL_ENVIRONMENT if settings.local else {}), _own_signals():
            ray.init(address=settings.address, **options)
    except Exception as error:
        raise ClusterError(_why(error, settings)) from error
    _hush(ray)
    try:
        yield ray
    finally:
        ray.shutdown()


def is_gone(ray: Any) -> bool:
    """Whether the Ray that this process is connected to has lost its head, or what was started here of it has ended.

    Ray itself notices that after a minute, or waits for ever.
    """
    node: Any = getattr(_internals(ray), "_global_node", None)
    started = getattr(node, "all_processes", {})
    if any(each.process.poll() is not None for kind in ("gcs_server", "raylet") for each in started.get(kind, ())):
        return True
    host, _, port = str(ray.get_runtime_context().gcs_address).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError:
        return True
    return False


def size(ray: Any, settings: ClusterSettings) -> tuple[int, dict[str, float], int | None]:
    """How many workers, what each takes of Ray's resources, and its threads (None: torch's own choice).

    Raises:
        InputError: this machine has fewer cards than the workers that were asked for.
    """
    total = ray.cluster_resources()
    cards, cpus = int(total.get("GPU", 0)), int(total.get("CPU", 0))
    if cards:
        if settings.local and (settings.workers or 0) > cards:
            asked = f"local:{settings.workers}"
            raise InputError("cluster", asked, f"this machine has {cards} card(s)", f"use local:{cards}")
        return settings.workers or cards, {"num_gpus": 1, "num_cpus": 0}, settings.cpus
    if settings.local:
        workers = _workers_on_processor(settings)
        return workers, {"num_cpus": 1}, settings.cpus or max(1, own_threads() // workers)
    threads = settings.cpus or max(1, cpus)
    return settings.workers or max(1, cpus // threads), {"num_cpus": threads}, threads


def _workers_on_processor(settings: ClusterSettings) -> int:
    """Workers of a Ray that is started here, where there are no cards."""
    cores = own_threads()
    return settings.workers or max(1, cores // (settings.cpus or cores))


def own_threads() -> int:
    """Threads that torch would take in this process."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(int(asked) if asked.isdigit() else 1, os.cpu_count() or 1)


def _hush(ray: Any) -> None:
    """Keep Ray's own pages about a worker that has ended off the terminal: `Lost` says it in a line."""
    internals = _internals(ray)
    if internals is not None and hasattr(internals, "_worker_logs_enabled"):
        internals._worker_logs_enabled = False


def _internals(ray: Any) -> Any:
    return getattr(getattr(ray, "_private", None), "worker", None)


def _check_somebody_listens(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        reason = f"nothing answers there ({error.strerror or error})"
        cure = "start it with `ray start --head --port PORT` there, and check the firewall"
        raise InputError("cluster", address, reason, cure) from None


def _why(error: Exception, settings: ClusterSettings) -> str:
    """What Ray says, with the cure where it is one of the usual causes."""
    text = first_line(error)
    if type(error).__name__ == "AuthenticationError" or "token" in text.lower():
        return (
            f"Ray at {settings.address} refuses this machine: its token is another one ({text}). Copy the file "
            "~/.ray/auth_token of the head to this machine, or set RAY_AUTH_TOKEN to what `ray get-auth-token` says "
            "there; RAY_AUTH_MODE has to be the same on both"
        )
    if "version" in text.lower():
        return f"Ray at {settings.address} is another version: {text}. Install the same Ray and Python on all machines"
    return f"Ray at {settings.address} cannot be used: {text}"


@contextmanager
def _own_signals() -> Iterator[None]:
    """What this process does when it is told to end stays: Ray puts its own in the place of SIGTERM's, and aborts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _environment(without: tuple[str, ...], defaults: dict[str, str]) -> Iterator[None]:
    """Environment variables for what is started in the block: some hidden, some set where they are not."""
    before = dict(os.environ)
    for name in without:
        os.environ.pop(name, None)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name in (*without, *defaults):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]
