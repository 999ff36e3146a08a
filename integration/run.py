#!/usr/bin/env python3
"""Runs the rings of tests in order, and counts.

    run.py                   every ring, but `faults`
    run.py pure pair         these rings only
    run.py cluster -- name   these rings, only the tests whose path holds `name`

Prints one line for each ring, `pure: N passed, N failed, N skipped`, and last a line alone with the sums. The exit
code is 0 only if nothing failed. A ring whose target or programs are missing has failed; only mesh, which needs an
istiod that is not built here, may be skipped, and is counted so.

Tests on real programs share the machine with each other. Where no more than three of a ring have failed, each of them runs
once more, by itself: one that passes then counts as passed, and is named at the end as unsteady.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
RESULT = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored;")
FAILED = re.compile(r"^test (\S+) \.\.\. FAILED$")
# Unoptimized agents take half of the processor from the real programs that they are tested with.
OPTIMIZED = ("--profile", "rings")
# More than these have a cause in common: they are not run again.
MOST_AGAIN = 3
RINGS = ("pure", "pair", "cluster", "dataplane", "mesh", "faults")
# What cannot be absent. The others run once there is a test target of that name.
ALWAYS = ("pure", "pair", "cluster")
# Scenarios of the cluster ring begin all at once, and wait for their turn: how many run at a time, which first and which
# alone is decided there (`cluster/turn.rs`).
ALL_AT_ONCE = "--test-threads=1000"
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


def cargo_test(arguments, minimum=1):
    """Runs `cargo test`, passing its output on, and reads the counts from it.

    A run that ends badly without naming a failed test (it did not build, or crashed), or that ran fewer than
    `minimum` tests, is one failure.
    """
    command = ["cargo", "test", "--locked", *arguments]
    say(" ".join(command))
    count = Count()
    environment = dict(os.environ, CARGO_TERM_COLOR=os.environ.get("CARGO_TERM_COLOR", "never"))
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
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


def on_real_programs(arguments):
    """As `cargo_test`, with agents that are optimized a little; the few that failed are run once more, one after the other."""
    arguments = [*OPTIMIZED, *arguments]
    count = cargo_test(arguments)
    if not 0 < len(count.names) == count.failed <= MOST_AGAIN:
        return count
    say(f"once more, by themselves: {', '.join(count.names)}")
    before = arguments[:arguments.index("--")] if "--" in arguments else arguments
    targets = [word for flag, word in zip(before, before[1:]) if flag == "--test"]
    flags = [word for target in targets for word in ("--test", target)]
    again = cargo_test([*OPTIMIZED, *flags, "--", "--test-threads=1", "--exact", *count.names], len(count.names))
    if again.failed == len(again.names):
        count.unsteady = [name for name in count.names if name not in again.names]
    count.passed, count.failed, count.names = count.passed + again.passed, again.failed, again.names
    return count


def test_targets():
    """The names of the integration test targets of the crate."""
    done = subprocess.run(
        ["cargo", "metadata", "--no-deps", "--format-version", "1"],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True,
    )
    targets = [target for package in json.loads(done.stdout)["packages"] for target in package["targets"]]
    return {target["name"] for target in targets if "test" in target["kind"]}


def pure(names):
    count = cargo_test(["--lib", "--bins", *names])
    count.add(cargo_test(["--doc", *names], minimum=0))
    return count


def mesh(names):
    istiod = os.environ.get("ENTENTE_ISTIOD") or shutil.which("istiod") or shutil.which("pilot-discovery")
    if not istiod:
        say("mesh: neither istiod nor pilot-discovery is on PATH, and ENTENTE_ISTIOD names none: skipped")
        return Count(skipped=1)
    return on_real_programs(["--test", "mesh", *names, "--", "--test-threads=1"])


def run_ring(ring, targets, names):
    if ring == "pure":
        return pure(names)
    if ring == "faults":
        return cargo_test([*OPTIMIZED, "--test", "cluster", "--", "--test-threads=1", "--nocapture", *FAULTS])
    if ring not in targets:
        say(f"{ring}: there is no test target of this name")
        return Count(failed=1)
    if ring == "mesh":
        return mesh(names)
    if ring == "cluster":
        skipped = [word for name in FAULTS for word in ("--skip", name)]
        return on_real_programs(["--test", "cluster", *names, "--", ALL_AT_ONCE, *skipped])
    # Of the data plane each test brings up proxies, and what they do is seen as they do it; those of pairs wait most of their time.
    at_a_time = {"dataplane": 1, "pair": 4}[ring]
    # The embedded authority, on which the pair ring stands, is held to the behaviour of the real one.
    beside = ["--test", "authority"] if ring == "pair" else []
    return on_real_programs(["--test", ring, *beside, *names, "--", f"--test-threads={at_a_time}"])


def main():
    arguments, names = sys.argv[1:], []
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, names = arguments[:cut], arguments[cut + 1:]
    unknown = [ring for ring in arguments if ring not in RINGS]
    if unknown or len(names) > 1:
        sys.exit(f"run: {unknown or names}: expected rings of {', '.join(RINGS)}, then at most `-- NAME`")
    targets = test_targets()
    rings = arguments or [ring for ring in RINGS if ring in ALWAYS or ring in targets]
    counts = {}
    for ring in rings:
        started = time.monotonic()
        counts[ring] = run_ring(ring, targets, names)
        say(f"{ring}: took {time.monotonic() - started:.0f} s")
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
