"""The tasks that models are trained for, by name."""

from utils.speaker.task import SpeakerTask
from utils.tts.task import TextToMelTask

TASKS = {task.name: task for task in (SpeakerTask, TextToMelTask)}
