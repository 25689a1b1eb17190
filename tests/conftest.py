"""What all tests have in common."""

from __future__ import annotations

import signal

# A shell that starts tests in the background lets them ignore Ctrl-C, and so would all that
# they start; some tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)
