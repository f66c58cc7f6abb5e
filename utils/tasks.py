"""The tasks that models are trained for, by name."""

from __future__ import annotations

from models.config import options
from utils.speaker.training.task import SpeakerTask
from utils.tts.task import TextToMelTask

TASKS = {task.name: task for task in (SpeakerTask, TextToMelTask)}


def flags_of_other_tasks(name: str, **others: str) -> dict[str, str]:
    """Flags that the task `name` lacks, each with the words that name its case, such as `--task tts`.

    `others` are flags of one script, each with its task.
    """
    flags = {flag: task for flag, task in others.items() if task != name}
    for other, task in TASKS.items():
        if other != name:
            flags |= {
                field.name: other for part in (task.model_config, *task.option_classes()) for field in options(part)
            }
    return {flag: f"--task {task}, not for --task {name}" for flag, task in flags.items()}
