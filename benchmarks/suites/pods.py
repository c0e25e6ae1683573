"""Training steps of whole jobs, compiled for TPU pods that are not present: memory, collectives, time to compile."""

import argparse
import json
import pathlib
import shlex
import time
from typing import Any, NamedTuple

from benchmarks.measure.results import finish, new_document, say, write


class Job(NamedTuple):
    """One training job: devices, how they share the work, and options of `jaxattn-train charlm --preset longctx`."""

    target: str
    mesh: str
    batch: int
    length: int
    attention: str
    layers: int = 12
    heads: int = 12
    features: int = 768

    @property
    def name(self) -> str:
        """What tells jobs apart."""
        return f"{self.target} {self.mesh} {self.attention} {self.layers}x{self.features} T{self.length}"

    def words(self) -> list[str]:
        """The options."""
        return shlex.split(
            f"--preset longctx --corpus reference --compile-for {self.target} --mesh {self.mesh} "
            f"--batch-size {self.batch} --context-length {self.length} --attention {self.attention} "
            f"--num-layers {self.layers} --num-heads {self.heads} --features {self.features}"
        )


FEATURES, TREE = "features:oprf-orf:128", "tree:64x16x16"
# Parameters are cut among 16 chips, and pods of more hold copies.
PODS = {"v5e:8x8": "data=4,fsdp=16", "v5e:16x16": "data=16,fsdp=16"}
JOBS = (
    *(Job("v5e:4x4", "fsdp=16", 16, 8192, attention) for attention in ("softmax", FEATURES, TREE)),
    Job("v5e:4x4", "fsdp=16", 16, 8192, FEATURES, layers=48),
    Job("v5e:8x8", PODS["v5e:8x8"], 64, 8192, FEATURES),
    Job("v5e:16x16", PODS["v5e:16x16"], 256, 8192, FEATURES),
    Job("v5e:8x8", PODS["v5e:8x8"], 64, 8192, FEATURES, 24, 16, 2048),
    Job("v5e:16x16", PODS["v5e:16x16"], 256, 8192, FEATURES, 24, 16, 2048),
    Job("v5e:16x16", "fsdp=256", 256, 8192, FEATURES, 24, 16, 2048),
    *(Job("v5e:1x1", "data=1", 1, 2**16, attention) for attention in (FEATURES, TREE)),
    *(Job("v5e:4x4", "sequence=16", 1, 2**20, attention) for attention in (FEATURES, TREE)),
)


def add_arguments(parser: argparse.ArgumentParser, results: pathlib.Path) -> None:
    """Command-line options."""
    add = parser.add_argument
    add(
        "--jobs",
        nargs="+",
        default=[""],
        help="those whose name contains one of these; rows of others are kept",
    )
    add("--out", type=pathlib.Path, default=results / "pods.json", help="result file")


def run(arguments: argparse.Namespace) -> None:
    """Compiles one job after the other, and writes the result after each."""
    before = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    rows = {row["job"]: row for row in before}
    document = new_document("pods", {})
    for job in JOBS:
        if any(part in job.name for part in arguments.jobs):
            rows[job.name] = compile_job(job)
            say(f"{job.name}: {rows[job.name]}")
        document["rows"] = [rows[job.name] for job in JOBS if job.name in rows]
        write(document, arguments.out)
    finish(document, arguments.out)


def compile_job(job: Job) -> dict[str, Any]:
    """A row of the result: bytes and FLOPs are a device's, of one step.

    Raises:
        UserError: the compiler is not installed.
    """
    import jax
    import numpy as np

    from jaxattn_train.engine import sharding
    from jaxattn_train.engine.compile_for import choose_devices, compile_step
    from jaxattn_train.tasks.charlm.config import parse
    from jaxattn_train.tasks.charlm.corpora import BYTES
    from jaxattn_train.tasks.charlm.evaluation import next_token_loss
    from jaxattn_train.tasks.charlm.model import language_model

    config, target, mesh = choose_devices(parse(job.words()))
    assert target is not None
    model = sharding.partitioned(language_model(config.model, len(BYTES)))
    windows = jax.ShapeDtypeStruct((1, job.batch, job.length + 1), np.int32)
    jax.clear_caches()
    start = time.process_time()
    report = compile_step(config, target, model, mesh, next_token_loss, [windows])
    cpu = time.process_time() - start
    return {
        "job": job.name,
        **job._asdict(),
        "devices": mesh.size,
        "parameters": model.num_params(),
        "status": "ok" if report.memory is not None else "does_not_fit",
        "memory_bytes": report.memory,
        "parts_bytes": report.parts,
        "chip_bytes": target.chip.memory,
        "compile_s": round(report.seconds, 1),
        "compile_cpu_s": round(cpu, 1),
        "flops": report.flops,
        "moved_bytes": report.moved,
        "collectives": report.exchanged,
        "message": report.message,
        "versions": target.versions(),
    }
