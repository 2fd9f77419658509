"""What `helpers.fit` is made of. Import it, or `helpers`, before torch: how threads wait is read when torch loads."""

import os

# Threads that wait for each other spin for 300,000 rounds by default, which is milliseconds: a program that needs the
# core is kept from it, and so is the thread that is waited for. 5,000 rounds cost an idle machine nothing (libgomp).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
