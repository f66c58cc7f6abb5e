"""Training of recognizers: crops, augmentation and the task."""
