"""Finishing a run: its missing cells are run on Ray, then all cells are combined.

A finished run is read back without starting Ray; a killed one goes on with the missing cells.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from downstream.cells.trials import run_trial, trials_of
from downstream.run.cells import run_cell
from downstream.run.run_result import collect, find_result

if TYPE_CHECKING:
    from downstream.cohorts.cohort import Cohort
    from downstream.run.study import Study
    from downstream.run.study_spec import Resources
    from featurestore import Lake


class RunTasks(Protocol):
    """A function that runs tasks and returns when all have stored their results."""

    def __call__(
        self, run: Callable[[Any], float], tasks: Sequence[Any], *, title: str, finished: int
    ) -> None:
        """Run all tasks, in any order; `finished` others were finished before."""


def execute(lake: "Lake", study: "Study", cohort: "Cohort", run_tasks: RunTasks) -> dict[str, Any]:
    """Return the result of a run, after running its missing cells and combining all cells.

    Args:
        lake: the lake, open.
        study: the run.
        cohort: cohort of the run, for the lists of missing and surplus ids.
        run_tasks: function that runs trials and cells, which store their results.

    Returns:
        The content of `result.json`.
    """
    from downstream.report.run_page import write_run_page

    study_result = find_result(lake, study.run)
    if study_result is None:
        cells = study.cells()
        for run, tasks, title in (
            (run_trial, trials_of(cells), "tune"),
            (run_cell, cells, study.kind),
        ):
            todo = [task for task in tasks if not lake.exists(task.path)]
            if todo:
                run_tasks(run, todo, title=title, finished=len(tasks) - len(todo))
        study_result = collect(lake, study, cohort)
    if not lake.exists(f"runs/{study.run}/report.html"):
        write_run_page(lake, study.run)
    return study_result


def on_ray(resources: "Resources") -> RunTasks:
    """Return a function that runs tasks on Ray: on a cluster, or on this machine."""

    def run_tasks(
        run: Callable[[Any], float], tasks: Sequence[Any], *, title: str, finished: int
    ) -> None:
        """Run the tasks on Ray, with a progress bar."""
        from cluster import Placement, noted_nodes, progress, ray_map, ray_session

        session = ray_session(
            address=resources.address, num_cpus=resources.num_cpus, ray_data=False
        )
        total = finished + len(tasks)
        demand = Placement(
            device="cuda" if resources.gpus_per_worker else "cpu",
            workers=1,
            cpus_per_worker=resources.cpus_per_worker,
            gpus_per_worker=resources.gpus_per_worker,
        )
        with (
            session,
            progress(title, total=total, initial=finished, unit="cells") as bar,
            noted_nodes(bar.note, demand),
        ):
            finished_tasks = ray_map(
                run,
                tasks,
                num_cpus=resources.cpus_per_worker,
                num_gpus=resources.gpus_per_worker,
            )
            for _ in finished_tasks:
                bar.advance(1)

    return run_tasks
