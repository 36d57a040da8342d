"""Judge rows, each process its share."""

from accelerate import Accelerator
from accelerate.utils import gather_object

from softprompt.evaluate.predict import Judged, judge
from softprompt.prompt import Prompt
from softprompt.tasks import Classifier, Task
from softprompt.train.rows import Rows


def judged(
    task: Task, rows: Rows, *, prompt: Prompt | None, batch_size: int, accelerator: Accelerator
) -> list[Judged]:
    """What each process found on its share of the rows; the same list in all of them."""
    total, processes = len(rows.examples), accelerator.num_processes
    # All processes must run a sharded backbone equally often. So they get equally many rows, and
    # all run the few that are left over; texts differ in length, so all write all of them.
    shared = total
    if task.backbone.sharded:
        shared = total - total % processes if isinstance(task, Classifier) else 0

    def on(own: slice) -> list[Judged]:
        examples, truth = rows.examples[own], rows.truth[own]
        return [judge(task, examples, truth=truth, prompt=prompt, batch_size=batch_size)]

    found: list[Judged] = []
    if shared:
        found += gather_object(on(slice(accelerator.process_index, shared, processes)))
    if shared < total:
        found += on(slice(shared, total))
    return found
