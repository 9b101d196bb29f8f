"""What all tests share."""

import os

# Before torch is imported: threads that wait must not spin, or two processes on a few cores starve each other. One
# thread is what a worker has a core for; servers take as many as there are cores all the same.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
