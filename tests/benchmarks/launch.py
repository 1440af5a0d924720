"""
Runs programs one at a time, and says what each of them took.

It is a process of its own because a program's peak of memory begins with that of the process that
it is forked from; this one imports next to nothing.
"""

import json
import os
import sys
import time


def run(command: list[str], environment: dict[str, str]) -> tuple[float, float, float]:
    """Run a program, and return its seconds, its CPU seconds, and peak of memory in bytes."""
    begin = time.perf_counter()
    process = os.posix_spawn(command[0], command, environment)
    _, status, usage = os.wait4(process, 0)
    wall = time.perf_counter() - begin
    if status:
        raise ChildProcessError(f"{command} has failed")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


if __name__ == "__main__":
    given = json.loads(sys.stdin.readline())
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(json.loads(line), given)) + "\n")
        sys.stdout.flush()
