"""Generated data in shards: made by several processes, kept as they come, so that an interrupted run goes on."""

import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from train.data.generators.array_file import read_arrays, write_arrays
from train.errors import UserError

Arrays = dict[str, np.ndarray]


def make_shards(
    make: Callable[..., Arrays],
    tasks: Mapping[int, tuple[Any, ...]],
    *,
    folder: Path,
    about: Mapping[str, Any],
    workers: int | None = None,
    title: str = "shards",
) -> dict[int, Arrays]:
    """Makes each shard that `folder` does not hold yet, and reads them all.

    A shard's content may depend on its arguments only: then neither the number of processes nor an interruption
    changes the data.

    Args:
        make: a function at the top of a module (other processes import it).
        tasks: its arguments by number of the shard.
        folder: where finished shards are kept.
        about: what they are of; shards of something else are made again.
        workers: processes; 1 makes them in this one, None takes one for each processor.
        title: of the progress bar.

    Returns:
        The shards by number, ascending.

    Raises:
        UserError: fewer workers than 1, one that dies, a damaged or unwritable file.
    """
    if workers is not None and workers < 1:
        raise UserError(f"the number of workers must be at least 1; got {workers}.")

    def labelled(shard: int) -> dict[str, Any]:
        return {**about, "shard": shard, "arguments": repr(tasks[shard])}

    files = {shard: folder / f"{shard:05d}.bin" for shard in sorted(tasks)}
    missing = [shard for shard, file in files.items() if read_arrays(file, about=labelled(shard)) is None]
    jobs = [(make, tasks[shard], str(files[shard]), labelled(shard)) for shard in missing]
    for _ in _progress(_run(jobs, workers or os.cpu_count() or 1), title, len(files), len(missing)):
        pass
    made = {shard: read_arrays(file, about=labelled(shard)) for shard, file in files.items()}
    return {shard: arrays for shard, arrays in made.items() if arrays is not None}


def _make_one(job: tuple[Callable[..., Arrays], tuple[Any, ...], str, dict[str, Any]]) -> None:
    make, arguments, path, about = job
    write_arrays(Path(path), make(*arguments), about=about)


def _run(jobs: list[Any], workers: int) -> Iterable[None]:
    if min(workers, len(jobs)) <= 1:
        yield from map(_make_one, jobs)
        return
    # A fresh interpreter each: a copy of one whose libraries run threads, as JAX's do, may hang.
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=fresh, initializer=_end_with_parent) as pool:
        try:
            for done in as_completed([pool.submit(_make_one, job) for job in jobs]):
                yield done.result()
        except BrokenProcessPool as error:
            raise UserError(
                f"a process ended before its work was done, as when memory runs out: {workers} were started. What "
                "they finished is kept; the same command with fewer workers goes on."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:  # a killed parent tells nobody; without this its workers would wait for work for ever
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _progress(steps: Iterable[None], title: str, total: int, missing: int) -> Iterable[None]:
    if not missing:
        return
    import rich.console
    import rich.progress

    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    console = rich.console.Console(file=sys.stderr)
    with rich.progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, completed=total - missing)
        for step in steps:
            bar.advance(task)
            yield step
