"""Judge the validation rows, each process its share."""

from accelerate import Accelerator
from accelerate.utils import gather_object

from softprompt.evaluate.predict import Judged, judge
from softprompt.prompt import Prompt
from softprompt.tasks import Task
from softprompt.train.rows import Rows


def judged(
    task: Task, rows: Rows, *, prompt: Prompt | None, batch_size: int, accelerator: Accelerator
) -> list[Judged]:
    """What each process found on its share of the rows; the same list in all of them."""
    own = slice(accelerator.process_index, None, accelerator.num_processes)
    mine = judge(
        task, rows.examples[own], truth=rows.truth[own], prompt=prompt, batch_size=batch_size
    )
    parts: list[Judged] = gather_object([mine])
    return parts
