#!/usr/bin/env python3
"""Runs the rings of tests, and counts.

    run.py                   every ring, but `faults`
    run.py pure pair         these rings only
    run.py cluster -- name   these rings, only the tests whose path holds `name`

Prints one line for each ring, `pure: N passed, N failed, N skipped`, and last a line alone with the sums. The exit
code is 0 only if nothing failed. A ring whose target or programs are missing has failed; only mesh, which needs an
istiod that is not built here, may be skipped, and is counted so.

What is missing is built first: the programs by `tools.py`, while cargo builds the tests.

Rings on real programs wait for most of their time, so all run side by side, each line with its ring before it. Where no more
than three tests of one have failed, each of them runs once more when all rings have ended, by itself: one that passes then
counts as passed, and is named at the end as unsteady.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
TOOLS = (sys.executable, str(REPOSITORY / "integration" / "tools.py"))
RESULT = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored;")
FAILED = re.compile(r"^test (\S+) \.\.\. FAILED$")
# More than these have a cause in common: they are not run again.
MOST_AGAIN = 3
RINGS = ("pure", "pair", "cluster", "dataplane", "mesh", "faults")
# How many tests of a ring begin at a time. Scenarios of the cluster ring begin all at once, and wait for their turn: how many run
# beside each other, which first and which alone is decided there (`cluster/turn.rs`). Of the data plane each test brings up
# proxies, and what they do is seen as they do it.
AT_A_TIME = {"pair": 4, "cluster": 1000, "dataplane": 1, "mesh": 1}
# The tests of the other rings promise short times, and need little; the cluster ring takes longest.
NICENESS = {"cluster": 10}
# The embedded authority, on which the pair ring stands, is held to the behaviour of the real one.
BESIDE = {"pair": ("authority",)}
# Replicas killed, restarted and cut off again and again, on short leases: they need a machine that does nothing else, and run by
# `make faults` alone.
FAULTS = ("scenarios::replicas::a_leader_that_is", "scenarios::replicas::a_rolling_restart")


class Count:
    """How many tests of a ring passed, failed, and were skipped; which failed, and which failed at first and passed alone."""

    def __init__(self, passed=0, failed=0, skipped=0):
        self.passed, self.failed, self.skipped = passed, failed, skipped
        self.names, self.unsteady = [], []

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.names += other.names
        self.unsteady += other.unsteady

    def __str__(self):
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def say(text):
    print(f"run: {text}", flush=True)


def cargo_test(arguments, minimum=1, label=None, niceness=0):
    """Runs `cargo test`, passing its output on, and reads the counts from it.

    A run that ends badly without naming a failed test (it did not build, or crashed), or that ran fewer than
    `minimum` tests, is one failure.
    """
    command = ["cargo", "test", "--locked", *arguments]
    if niceness:
        command = ["nice", "-n", str(niceness), *command]
    before = f"{label} | " if label else ""
    say(" ".join(command))
    count = Count()
    environment = dict(os.environ, CARGO_TERM_COLOR=os.environ.get("CARGO_TERM_COLOR", "never"))
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        for line in process.stdout:
            # One write for each line: others write meanwhile.
            sys.stdout.write(before + line)
            sys.stdout.flush()
            found = RESULT.match(line)
            if found:
                count.add(Count(*(int(number) for number in found.groups())))
            named = FAILED.match(line.rstrip())
            if named:
                count.names.append(named.group(1))
    if process.returncode != 0 and count.failed == 0:
        say(f"`{' '.join(command)}` ended with exit code {process.returncode} before it could name a failed test")
        count.failed += 1
    elif count.passed + count.failed + count.skipped < minimum:
        say(f"`{' '.join(command)}` ran no test")
        count.failed += 1
    return count


def flags_of(ring):
    """The targets of a ring. The binary has no test of its own, and the documentation no example that is compiled."""
    if ring == "pure":
        return ["--lib"]
    return [word for target in (ring, *BESIDE.get(ring, ())) for word in ("--test", target)]


def run_one(ring, names, label):
    skipped = [word for name in FAULTS for word in ("--skip", name)] if ring == "cluster" else []
    threads = [f"--test-threads={AT_A_TIME[ring]}"] if ring in AT_A_TIME else []
    # One that fails does not keep the one beside it from running.
    arguments = [*flags_of(ring), "--no-fail-fast", *names, "--", *threads, *skipped]
    return cargo_test(arguments, label=label, niceness=NICENESS.get(ring, 0))


def once_more(ring, count):
    """Runs the few tests of a ring that failed once more, one after the other."""
    if not 0 < len(count.names) == count.failed <= MOST_AGAIN:
        return
    say(f"{ring}: once more, by themselves: {', '.join(count.names)}")
    arguments = [*flags_of(ring), "--no-fail-fast", "--", "--test-threads=1", "--exact", *count.names]
    again = cargo_test(arguments, len(count.names))
    if again.failed == len(again.names):
        count.unsteady = [name for name in count.names if name not in again.names]
    count.passed, count.failed, count.names = count.passed + again.passed, again.failed, again.names


def test_targets():
    """The names of the integration test targets of the crate."""
    done = subprocess.run(
        ["cargo", "metadata", "--no-deps", "--format-version", "1"],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True,
    )
    targets = [target for package in json.loads(done.stdout)["packages"] for target in package["targets"]]
    return {target["name"] for target in targets if "test" in target["kind"]}


def istiod():
    return os.environ.get("ENTENTE_ISTIOD") or shutil.which("istiod") or shutil.which("pilot-discovery")


def is_built(arguments):
    command = ["cargo", "test", "--locked", *arguments, "--no-run"]
    say(" ".join(command))
    return subprocess.run(command, cwd=REPOSITORY).returncode == 0


def are_built(rings):
    """Whether all that the rings need is there now. Linkers use one processor: the programs are built beside the tests."""
    started = time.monotonic()
    tests = [flag for ring in rings for flag in flags_of(ring)]
    if rings == ["pure"]:
        return is_built(tests)
    with subprocess.Popen(TOOLS) as programs:
        built = is_built(tests)
        built = programs.wait() == 0 and built
    say(f"what the rings need was built in {time.monotonic() - started:.0f} s")
    return built


def run_ring(ring, names, label, counts):
    started = time.monotonic()
    counts[ring] = run_one(ring, names, label)
    say(f"{ring}: took {time.monotonic() - started:.0f} s")


def run_side_by_side(rings, names):
    """The counts of these rings, by name. What they need is built before the first begins."""
    # One that is missing at the end has not come to it.
    counts = {ring: Count(failed=1) for ring in rings}
    if rings and not are_built(rings):
        return counts
    threads = [
        threading.Thread(target=run_ring, args=(ring, names, ring if len(rings) > 1 else None, counts)) for ring in rings
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ring in rings:
        once_more(ring, counts[ring])
    return counts


def run_rings(rings, names):
    """The counts of the rings, by name."""
    counts, targets = {}, test_targets()
    for ring in rings:
        if ring in AT_A_TIME and ring not in targets:
            say(f"{ring}: there is no test target of this name")
            counts[ring] = Count(failed=1)
        elif ring == "mesh" and not istiod():
            say("mesh: neither istiod nor pilot-discovery is on PATH, and ENTENTE_ISTIOD names none: skipped")
            counts[ring] = Count(skipped=1)
    counts.update(run_side_by_side([ring for ring in rings if ring not in counts and ring != "faults"], names))
    if "faults" in rings:
        counts["faults"] = Count(failed=1)
        if are_built(["cluster"]):
            counts["faults"] = cargo_test([*flags_of("cluster"), "--", "--test-threads=1", "--nocapture", *FAULTS])
    return {ring: counts[ring] for ring in rings}


def share_the_processor():
    """A hundred programs that wake each other take a quarter less of it where none is put before another for having slept. Linux
    alone knows this; what is started from here inherits it."""
    if hasattr(os, "SCHED_BATCH"):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def main():
    arguments, names = sys.argv[1:], []
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, names = arguments[:cut], arguments[cut + 1:]
    unknown = [ring for ring in arguments if ring not in RINGS]
    if unknown or len(names) > 1:
        sys.exit(f"run: {unknown or names}: expected rings of {', '.join(RINGS)}, then at most `-- NAME`")
    rings = arguments or [ring for ring in RINGS if ring != "faults"]
    if rings != ["pure"] and subprocess.run([*TOOLS, "--check"]).returncode != 0:
        sys.exit(1)
    share_the_processor()
    counts = run_rings(rings, names)
    total = Count()
    for ring, count in counts.items():
        for name in count.unsteady:
            print(f"unsteady: {name} of {ring} failed at first, and passed by itself")
        print(f"{ring}: {count}")
        total.add(count)
    print(total, flush=True)
    sys.exit(1 if total.failed else 0)


if __name__ == "__main__":
    main()
