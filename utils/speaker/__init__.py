"""The speaker task: training, recognition, enrollment, evaluation, commands."""
