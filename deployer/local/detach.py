"""`python -m deployer.local.detach ARGV…`: run a program that has no parent but init, and print its pid.

Envoy asks the kernel for SIGTERM when its parent ends.  It has to outlive the supervisor, so its parent must be gone
before it is there to ask.
"""

import os
import sys


def main() -> None:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        os._exit(0)
    os.dup2(2, 1)
    while os.getppid() == parent:
        os.sched_yield()
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
