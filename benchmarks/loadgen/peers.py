"""Servers that are started for a comparison: on loopback, one at a time, stopped by their own process group."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from loadgen.client import GREEDY, RequestFailed, Sampling, Target, complete, find_dialect

HOST = "127.0.0.1"
PEER_BLOCK_SIZE = 32  # vLLM's CPU kernels take multiples of it; transformers gets the same
CONTEXT = 4096  # tokens of the longest sequence, for servers that have to be told
GIB = 1024**3
POLL_SECONDS = 0.2
STOP_SECONDS = 30.0
LOG_LINES = 15


class PeerFailed(Exception):
    """A server did not start; the text holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Peer:
    """How one server is started.

    Attributes:
        command: Without the port, which follows as ``--port N``.
        model: What requests call the model.
        packages: The distributions whose versions tell what was measured, in the environment of `python`.
        counters: What this comparison calls a counter → what the server's ``/metrics`` call it.
        needs: Files beside its program.
    """

    name: str
    command: Sequence[str]
    model: str
    python: Path
    packages: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    counters: Mapping[str, str] = field(default_factory=dict)
    needs: Sequence[Path] = ()

    @property
    def installed(self) -> bool:
        """Whether its program is there, and what it needs."""
        return all(path.exists() for path in (Path(self.command[0]), *self.needs))

    def versions(self) -> dict[str, str]:
        """Its packages' versions."""
        script = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:]), sep='\\n')"
        done = subprocess.run(
            [self.python, "-c", script, *self.packages], capture_output=True, text=True, check=False, cwd="/"
        )
        return dict(zip(self.packages, done.stdout.split(), strict=False))


def known_peers(model_folder: Path, peers_dir: Path | None, pool_tokens: int) -> dict[str, Peer]:
    """Name → server. All serve the same weights in bfloat16 with a KV pool of the same size, but for llama.cpp, which
    serves one request at a time.

    Args:
        peers_dir: Holds the virtual environments ``hf``, ``vllm`` and ``lcpp``, and ``lcpp/MODEL.gguf`` as
            benchmarks/bf16_gguf.py writes it; without it, only Octavo is known.
        pool_tokens: Tokens that each server's KV pool holds.
    """
    folder, name = str(model_folder), model_folder.name
    pool_bytes, blocks = pool_tokens * kv_bytes_per_token(model_folder), pool_tokens // PEER_BLOCK_SIZE
    here = Path(sys.executable)
    octavo = Peer(
        "octavo",
        [
            str(here),
            "-m",
            "octavo",
            "serve",
            folder,
            *_options(host=HOST, served_model_name=name, dtype="bfloat16", kv_cache_memory=pool_bytes),
        ],
        name,
        here,
        ("octavo", "torch"),
        counters={"preemptions": "octavo_preemptions_total", "recomputed tokens": "octavo_recomputed_tokens_total"},
    )
    if peers_dir is None:
        return {octavo.name: octavo}
    hf, vllm = peers_dir / "hf" / "bin", peers_dir / "vllm" / "bin"
    transformers = Peer(
        "transformers",
        [
            str(hf / "transformers"),
            "serve",
            folder,
            "--continuous-batching",
            *_options(host=HOST, device="cpu", dtype="bfloat16", cb_num_blocks=blocks, cb_block_size=PEER_BLOCK_SIZE),
        ],
        folder,  # it answers to no other name
        hf / "python",
        ("transformers", "torch"),
    )
    vllm_one = Peer(
        "vllm",
        [
            str(vllm / "vllm"),
            "serve",
            folder,
            "--enable-prompt-tokens-details",
            *_options(host=HOST, served_model_name=name, dtype="bfloat16", block_size=PEER_BLOCK_SIZE),
            *_options(num_gpu_blocks_override=blocks),
        ],
        name,
        vllm / "python",
        ("vllm", "torch"),
        # The space must hold one sequence of the longest kind before the override is looked at.
        {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": f"{-(-pool_bytes // GIB)}", "VLLM_NO_USAGE_STATS": "1"},
        {"preemptions": "vllm:num_preemptions_total"},
    )
    python, model = peers_dir / "lcpp" / "bin" / "python", peers_dir / "lcpp" / f"{name}.gguf"
    # Serves one request at a time, so its context is not the others' pool.
    threads = len(os.sched_getaffinity(0))
    llama = Peer(
        "llama.cpp",
        [
            str(python),
            "-m",
            "llama_cpp.server",
            *("--model", str(model), "--host", HOST, "--n_ctx", str(CONTEXT)),
            *("--n_threads", str(threads), "--n_threads_batch", str(threads)),
        ],
        name,
        python,
        ("llama_cpp_python",),
        needs=(model,),
    )
    # By default vLLM keeps one core for its scheduler; on a machine with two that is half of it.
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    vllm_all = replace(vllm_one, name="vllm-all-cores", env={**vllm_one.env, "VLLM_CPU_OMP_THREADS_BIND": cores})
    return {peer.name: peer for peer in (octavo, transformers, vllm_one, vllm_all, llama)}


def _options(**values: object) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def kv_bytes_per_token(model_folder: Path) -> int:
    """Bytes of keys and values that one token takes over all layers, in bfloat16."""
    config = json.loads((model_folder / "config.json").read_text())
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(2 * 2 * config["num_hidden_layers"] * heads * head_dim)


@dataclass(frozen=True, slots=True)
class RunningPeer:
    """A server that has answered.

    Attributes:
        start_seconds: From its start to its first generated token.
        pid: Of the process that answers HTTP.
    """

    target: Target
    start_seconds: float
    pid: int

    def cpu_seconds(self) -> float:
        """User and system time of the process that answers HTTP, all its threads included."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.asynccontextmanager
async def running(
    peer: Peer, *, start_timeout: float, request_timeout: float, sampling: Sampling = GREEDY
) -> AsyncIterator[RunningPeer]:
    """Starts a server, waits until it has generated a token, and stops it afterwards.

    Raises:
        PeerFailed: It ended, or did not answer in time.
    """
    with TemporaryDirectory(prefix="octavo-compare-") as scratch:
        log = Path(scratch) / "log"
        port = _free_port()
        target = Target(f"http://{HOST}:{port}/v1", peer.model, timeout=request_timeout, sampling=sampling)
        started = time.perf_counter()
        # It has a session of its own and would outlive a benchmark that is asked to end, as `timeout` does.
        if (task := asyncio.current_task()) is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*peer.command, "--port", str(port)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=scratch,
                env={**os.environ, "HF_HUB_OFFLINE": "1", **peer.env},
                start_new_session=True,
            )
        try:
            target = await _first_answer(target, process, started + start_timeout)
            yield RunningPeer(target, time.perf_counter() - started, process.pid)
        except PeerFailed as error:
            raise PeerFailed(f"{error}; its log ends with\n{_tail(log)}") from error
        finally:
            await asyncio.to_thread(_stop, process)


async def _first_answer(target: Target, process: subprocess.Popen[bytes], deadline: float) -> Target:
    refusal = "no answer"
    while time.perf_counter() < deadline:
        if process.poll() is not None:
            raise PeerFailed(f"it ended with status {process.returncode}")
        try:
            ready = await find_dialect(target)
            await complete(ready, "Once upon a time", 2)
        except RequestFailed as error:
            refusal = str(error)
            await asyncio.sleep(POLL_SECONDS)
        else:
            return ready
    raise PeerFailed(f"it was not ready in time ({refusal})")


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a server and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
