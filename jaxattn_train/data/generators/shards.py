"""Generated data in shards, made by several processes, each kept when finished, so that a stopped run resumes."""

import hashlib
import multiprocessing
import multiprocessing.connection
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from jaxattn_train.data.generators.array_file import Arrays, read_arrays, stored_or_made, write_arrays
from jaxattn_train.errors import UserError


def generated(folder: Path, about: Mapping[str, Any], make: Callable[[Path], Arrays]) -> Arrays:
    """The arrays of a generated set: from its file in `folder`, or made and kept there.

    Args:
        folder: of the cache.
        about: everything the data depend on, with "task" and "seed", which name the file.
        make: from the folder that holds its shards until it is finished, to the arrays.
    """
    digest = hashlib.sha256(repr(about).encode()).hexdigest()[:12]
    path = folder / f"{about['task']}-seed{about['seed']}-{digest}.npz"
    shards = path.with_suffix(".shards")
    arrays = stored_or_made(path, about, lambda: make(shards))
    shutil.rmtree(shards, ignore_errors=True)
    return arrays


def make_shards(
    make: Callable[..., Arrays],
    tasks: Mapping[int, tuple[Any, ...]],
    *,
    folder: Path,
    about: Mapping[str, Any],
    workers: int | None = None,
) -> dict[int, Arrays]:
    """Makes each shard that `folder` does not hold yet, and reads them all.

    A shard's content must depend on its arguments only; then neither the number of processes nor an interruption
    changes the data.

    Args:
        make: a function at the top level of a module (other processes import it).
        tasks: its arguments by number of the shard.
        folder: where finished shards are kept.
        about: what they are of, with "task"; shards of something else are made again.
        workers: processes; 1 makes them in this one, None takes one for each processor.

    Returns:
        The shards by number, ascending.

    Raises:
        UserError: fewer workers than 1, one that dies, a damaged or unwritable file.
    """
    if workers is not None and workers < 1:
        raise UserError(f"the number of workers must be at least 1; got {workers}.")
    files = {shard: folder / f"{shard:05d}.npz" for shard in sorted(tasks)}
    labels = {shard: {**about, "shard": shard, "arguments": repr(tasks[shard])} for shard in files}
    missing = [shard for shard, file in files.items() if read_arrays(file, about=labels[shard]) is None]
    if missing:
        import rich.console
        import rich.progress

        jobs = [(make, tasks[shard], files[shard], labels[shard]) for shard in missing]
        steps, console = _run(jobs, workers or os.cpu_count() or 1), rich.console.Console(file=sys.stderr)
        kept, quiet = len(files) - len(missing), not console.is_terminal
        for _ in rich.progress.track(steps, about["task"], len(files), kept, console=console, disable=quiet):
            pass
    made = {shard: read_arrays(file, about=labels[shard]) for shard, file in files.items()}
    return {shard: arrays for shard, arrays in made.items() if arrays is not None}


def _make_one(job: tuple[Callable[..., Arrays], tuple[Any, ...], Path, dict[str, Any]]) -> None:
    make, arguments, path, about = job
    write_arrays(path, make(*arguments), about=about)


def _run(jobs: list[Any], workers: int) -> Iterator[None]:
    if min(workers, len(jobs)) <= 1:
        yield from map(_make_one, jobs)
        return
    # Spawned, because a fork of a process whose libraries run threads, as JAX's do, may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=_exit_with_parent
    ) as pool:
        try:
            for done in as_completed([pool.submit(_make_one, job) for job in jobs]):
                yield done.result()
        except BrokenProcessPool as error:
            raise UserError(
                f"one of {workers} worker processes died, for instance because memory ran out. Finished shards are "
                "kept; the same command with fewer workers resumes."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _exit_with_parent() -> None:
    """Ends this worker when its parent is killed, which no queue tells it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
