"""Data options of lra, for all tasks, with their checks."""

import dataclasses
from pathlib import Path

from jaxattn_train.cli.options import Options, flag
from jaxattn_train.data import download
from jaxattn_train.data.generators.listops_trees import TreeSpec
from jaxattn_train.errors import UserError


@dataclasses.dataclass(frozen=True)
class LRADataOptions(Options, at_least={"max_length": 1, "min_length": 0, "data_seed": 0, "workers": 1}):
    """The data. None is the published value of the task."""

    data_path: str | None = None
    """Location of the files of text, retrieval, image or the released pathfinder, instead of JAXATTN_DATA, the cache
    or a download; pathfinder without it is generated, as listops always is."""
    sizes: tuple[int, int, int] | None = None
    """Examples for training, validation and test; of files, evenly spaced ones."""
    max_length: int | None = None
    """text and retrieval: bytes of a text, truncated there; listops: expressions are shorter."""
    min_length: int | None = None
    """listops: expressions are longer."""
    max_depth: int | None = None
    """listops: depth of the deepest digit, the root having 1."""
    contour_length: int | None = None
    """pathfinder, generated: dashes of the two long paths; published are 14."""
    distractors: int | None = None
    """pathfinder, generated: short paths, at most; published are 5."""
    closing_brackets: bool = True
    """listops: keep the token "]", which the published pipeline loses."""
    data_seed: int | None = None
    """Of generated data; by default 0. All runs that are compared should have the same."""
    workers: int | None = None
    """Processes that generate; by default one for each processor."""
    data_cache: str | None = None
    """Folder for generated data and pictures read once; by default the user's cache."""

    def cache(self) -> Path:
        """Where generated data are kept."""
        return Path(self.data_cache) if self.data_cache is not None else download.cache() / "lra"

    def expressions(self) -> TreeSpec:
        """The distribution of expressions of listops."""
        given = {name: getattr(self, name) for name in ("min_length", "max_length", "max_depth")}
        return TreeSpec(**{name: value for name, value in given.items() if value is not None})

    def check_for(self, task: str) -> None:
        """Raises UserError unless the options belong to the task and make sense."""
        files = task == "pathfinder" and self.data_path is not None
        generated = task in ("listops", "pathfinder") and not files
        for names, fine, whose in (
            (["data_path"], task != "listops", "the tasks that are read from files"),
            (["min_length", "max_depth"], task == "listops", "listops"),
            (["max_length"], task in ("listops", "text", "retrieval"), "listops, text and retrieval"),
            (["contour_length", "distractors"], task == "pathfinder" and not files, "pathfinder, generated"),
            (["data_seed", "workers"], generated, "listops and pathfinder, generated"),
            (["data_cache"], task in ("listops", "pathfinder"), "listops and pathfinder"),
        ):
            for name in names:
                if getattr(self, name) is not None and not fine:
                    raise UserError(f"{flag(name)} is for {whose}; got it with --task {task}.")
        if not self.closing_brackets and task != "listops":
            raise UserError(f"--no-closing-brackets is for listops; got it with --task {task}.")
        if self.sizes is not None and min(self.sizes) < 1:
            raise UserError(f"--sizes must be at least 1 each; got {' '.join(map(str, self.sizes))}.")
        for name, least, most in (("contour_length", 2, 14), ("distractors", 0, 5), ("max_depth", 2, 20)):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UserError(f"{flag(name)} must be {least} to {most}; got {value}.")
        if task == "listops":
            self.expressions()  # raises where no length lies between the bounds
