"""lab.benchmark.cells: nothing that a defence is given leads to the truth."""

import gc
from dataclasses import replace
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType

from clipguard.lab.benchmark.cells import CellRunner
from clipguard.lab.benchmark.config import cells, read_config
from clipguard.lab.benchmark.places import BenchmarkPaths
from tiny_bench import tiny_bench


def reachable(roots: list[object], depth: int = 8) -> list[object]:
    """Return what Python references lead to, through functions, methods and clipguard's own values.

    Module globals are no part of it: from any function of Python, they lead to all that is loaded.
    """
    followed = (FunctionType, MethodType, CellType, partial, dict, list, tuple)
    everything, layer = {id(root): root for root in roots}, roots
    for _ in range(depth):
        inner: list[object] = []
        for one in layer:
            if isinstance(one, FunctionType):
                inner += [*(one.__closure__ or ()), one.__defaults__, one.__kwdefaults__, one.__dict__]
            elif isinstance(one, followed) or type(one).__module__.startswith("clipguard."):
                inner += [part for part in gc.get_referents(one) if not isinstance(part, type | ModuleType)]
        layer = [one for one in inner if id(one) not in everything]
        everything |= {id(one): one for one in layer}
    return list(everything.values())


def test_nothing_that_a_defence_is_given_leads_to_the_truth(tmp_path):
    tiny = tiny_bench(tmp_path, "rates = [0.15]\n")
    config = read_config(tiny.file)
    (cell,) = cells(config)
    paths = BenchmarkPaths(run=tmp_path, cache=tiny.cache, data=tmp_path, beside=tmp_path)
    runner = CellRunner(cell, paths, config.reference_seeds)
    case = runner.case()
    assert case.victim is not case.victim
    runner.guide_accuracy  # noqa: B018  # what was measured with the truth leaves none in the guide
    truth = runner.poisoned[1]

    def leads(root: object) -> bool:
        return any(one is truth or isinstance(one, CellRunner) for one in reachable([root]))

    assert not leads(case)
    # The walk can find it: by a method of the runner, and by a closure over one.
    assert leads(replace(case, train_victim=runner.undefended))
    assert leads(replace(case, train_victim=lambda: runner.victim.trained[0]))
