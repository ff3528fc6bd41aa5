"""Where, and in which process, a training runs."""
