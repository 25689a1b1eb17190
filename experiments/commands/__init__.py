"""One command a file: ``main``, its help and its summary."""
