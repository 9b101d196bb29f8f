"""What all tests share."""

import os

# Before torch is imported: threads that wait must not spin, or two processes on a few cores starve each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
