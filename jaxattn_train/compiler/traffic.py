"""HBM bytes that a compiled program moves, counted in its optimised HLO text.

XLA's own count (`compiled.cost_analysis()["bytes accessed"]`) takes the body of a loop once, and counts an array that
every round slices in full. Here the body counts as often as it runs, a slice as the slice, an update in place as the
update, and an array in on-chip memory (VMEM on a TPU) not at all. Sizes are those of the layout: an axis of 64 tiled
by 128 takes 128. A loop whose rounds depend on the counter of another (causal blocks) is counted round by round.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from jaxattn_train.compiler.hlo import COLLECTIVES, Buffer, Computation, Instruction, Program
from jaxattn_train.compiler.integers import Frame

_Where = tuple[str, str]  # names of a computation and of an instruction in it
_Runs = Counter[_Where]  # how often each runs
# These name buffers, or their computations are counted, and move nothing themselves.
_FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "opt-barrier",
    "partition-id",
    *("while", "conditional", "call", "async-start"),
)
_SLICES = ("slice", "dynamic-slice", "gather")
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # opcode -> which operand is the update


def hbm_bytes(hlo: str, kernels: Mapping[str, Sequence[float]] | None = None) -> int:
    """Bytes read from and written to HBM by one run of a compiled program.

    Every instruction reads its operands and writes its result; a fusion reads of an operand what the instructions in
    it use. Of a conditional's branches the most expensive counts. A custom call (a cuDNN graph, a Pallas
    kernel not in `kernels`) counts every operand and result once, which is a lower bound.

    Args:
        hlo: `compiled.as_text()`.
        kernels: how often Pallas kernels move their operands and results, from `kernel_moves`.

    Raises:
        ValueError: the number of rounds of a loop depends on data.

    Examples:
        >>> import jax
        >>> x = jax.ShapeDtypeStruct((1000,), "float32")
        >>> hbm_bytes(jax.jit(lambda x: 2 * x + 1).lower(x).compile().as_text())
        8000
    """
    count = Count(hlo, kernels)
    return count.bytes(count.runs())


class Count:
    """How often the instructions of one HLO text run, and what each costs."""

    def __init__(self, hlo: str, kernels: Mapping[str, Sequence[float]] | None = None):
        self.program = Program(hlo)
        self.kernels = kernels or {}
        self._alone: dict[str, _Runs | None] = {}

    def bytes(self, runs: _Runs) -> int:
        """What instructions read from and write to HBM."""
        return sum(times * self._cost(*self._find(where)) for where, times in runs.items())

    def instructions(self) -> Iterator[tuple[Instruction, Computation, int]]:
        """What runs, its computation, and how often."""
        return ((*self._find(where), times) for where, times in self.runs().items())

    def runs(self, frame: Frame | None = None) -> _Runs:
        """The instructions of one run of a computation (None for the program) and of what it calls."""
        frame = frame or Frame(self.program, self.program.entry)
        found: _Runs = Counter({(frame.computation.name, name): 1 for name in frame.computation})
        for this in frame.computation.values():
            if this.opcode in ("call", "async-start"):
                found.update(self.runs(frame.called(this)))
            elif this.opcode == "conditional":
                costs = [(self.bytes(runs), runs) for runs in map(self.runs, frame.branches(this))]
                found.update(max(costs, key=lambda pair: pair[0])[1])
            elif this.opcode == "while":
                found.update(self._loop_runs(this, frame))
        return found

    def _loop_runs(self, loop: Instruction, frame: Frame) -> _Runs:
        body, found, rounds = self._alone_runs(self.program.named(loop, "body")), Counter[_Where](), 0
        if body is not None and loop.trip_count is not None:
            rounds = loop.trip_count
        else:
            for run in frame.rounds(loop):
                rounds += 1
                if body is None:
                    found.update(self.runs(run))
        condition = self.runs(Frame(self.program, self.program.named(loop, "condition")))
        for where, count in (body or _Runs()).items():
            found[where] += count * rounds
        for where, count in condition.items():
            found[where] += count * (rounds + 1)
        return found

    def _alone_runs(self, body: Computation) -> _Runs | None:
        """Those of a body that runs the same in every round, None for others."""
        if body.name not in self._alone:
            try:
                self._alone[body.name] = self.runs(Frame(self.program, body))
            except ValueError:
                self._alone[body.name] = None
        return self._alone[body.name]

    def _find(self, where: _Where) -> tuple[Instruction, Computation]:
        computation = self.program.computations[where[0]]
        return computation[where[1]], computation

    def _cost(self, this: Instruction, computation: Computation) -> int:
        """Bytes of one instruction that is not part of a fusion."""
        opcode, operands = this.opcode, [computation[name] for name in this.operands]
        free = opcode in _FREE or opcode.endswith(("-done", "-update"))
        if free or (opcode == "custom-call" and "AllocateBuffer" in this.text):
            return 0
        moves = self.kernels.get(this.name.split(".")[0]) if opcode == "custom-call" else None
        if moves is not None:
            sizes = [x.hbm for x in operands] + [x.size * x.in_hbm for x in this.buffers]
            return round(sum(size * times for size, times in zip(sizes, moves, strict=True)))
        if opcode == "fusion":
            fused = self.program.named(this, "calls")
            if fused.collective == "done":
                return 0
            if fused.collective == "start":
                result = this.buffers[len(operands)]
                return sum(x.hbm for x in operands) + result.size * result.in_hbm
            reads = (self._read(fused, fused.parameters[i], x.size) for i, x in enumerate(operands) if x.hbm)
            return sum(reads) + sum(self._written(fused, fused.root, this.buffers))
        this, opcode = this._replace(buffers=this.results), opcode.removesuffix("-start")
        if opcode in _UPDATES:
            update = operands[_UPDATES[opcode]]
            return update.hbm + update.size * (this.hbm > 0)
        if opcode in _SLICES:
            return min(this.size, operands[0].hbm) + this.hbm
        return this.hbm + sum(operand.hbm for operand in operands)

    def _read(self, fused: Computation, name: str, whole: int) -> int:
        """Bytes that a fusion reads of an operand of `whole` bytes: all, or the slices that are used."""
        total = 0
        for user in fused.users[name]:
            sliced = user.operands[0] == name and user.operands.count(name) == 1
            if sliced and user.opcode in _SLICES:
                total += user.size
            elif (sliced and user.opcode in _UPDATES) or user.opcode == "bitcast":
                total += self._read(fused, user.name, whole)  # what is not updated stays where it is
            elif user.opcode == "fusion":
                inner = self.program.named(user, "calls")
                places = [inner.parameters[i] for i, operand in enumerate(user.operands) if operand == name]
                # A fusion inside that reads nothing passes the array on to its users.
                inside = sum(self._read(inner, place, whole) for place in places)
                total += inside or self._read(fused, user.name, whole)
            elif user.opcode != "tuple" and not _under_way(fused, user):
                return whole
        return min(total, whole)

    def _written(self, fused: Computation, root: Instruction, buffers: tuple[Buffer, ...]) -> Iterator[int]:
        """Bytes that a fusion writes to each buffer of its result: all, or the update of a parameter in place."""
        if root.opcode == "tuple":
            for operand, buffer in zip(root.operands, buffers, strict=True):
                yield from self._written(fused, fused[operand], (buffer,))
        elif root.opcode == "bitcast":
            yield from self._written(fused, fused[root.operands[0]], buffers)
        elif root.opcode == "fusion":
            inner = self.program.named(root, "calls")
            yield from self._written(inner, inner.root, buffers)
        elif root.opcode == "parameter" or _under_way(fused, root):
            yield 0  # the operand itself
        elif root.opcode in _UPDATES and self._is_parameter(fused, root.operands[0]):
            yield fused[root.operands[_UPDATES[root.opcode]]].size if buffers[0].in_hbm else 0
        else:
            yield from (buffer.size for buffer in buffers if buffer.in_hbm)

    def _is_parameter(self, fused: Computation, name: str) -> bool:
        while fused[name].opcode in ("bitcast", *_UPDATES):
            name = fused[name].operands[0]
        return fused[name].opcode == "parameter"


def _under_way(fused: Computation, this: Instruction) -> bool:
    """Whether an instruction of a fusion names a collective that another one started: it counts there."""
    return this.opcode in COLLECTIVES and not fused.collective
