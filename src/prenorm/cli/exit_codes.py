"""What a command ends with: 0 good, 1 found faults, and these."""

UNEXPECTED = 1  # as Python itself ends
BAD_USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as in shells
BROKEN_PIPE = 141  # 128 + SIGPIPE
