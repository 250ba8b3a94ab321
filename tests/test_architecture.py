"""The package's shape: imports point down, modules say what they know, one reads the clock."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = SOURCE / "fmgauge"
LAYERS = (  # a module may import those below it, and its own package
    "cli",
    "pipeline",
    "report",
    "decision",
    "metrics",
    "deploy",
    "emulator",
    "load",
    "transport",
    "wire",
    "workloads",
    "pricing",
    "runs",
    "config",
    "statistics",
    "records",
    "errors",
)
HEAVY = {
    "boto3",
    "datasets",
    "gguf",
    "matplotlib",
    "pandas",
    "papermill",
    "sagemaker",
    "scipy",
    "seaborn",
    "xllamacpp",
}
MAY_IMPORT_PANDAS = {"decision", "metrics", "report"}
NAMELESS = {"utils", "util", "helpers", "helper", "common", "manager"}
CLOCKS = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"}
BROAD = {"Exception", "BaseException"}
MOST_LINES = 50

MODULES = sorted(PACKAGE.rglob("*.py"))
each_module = pytest.mark.parametrize(
    "path", MODULES, ids=[str(path.relative_to(PACKAGE)) for path in MODULES]
)


def module_name(path: Path) -> str:
    """The dotted name of the module in the file at `path`."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(name: str) -> str | None:
    """The part of `name` below fmgauge; None for the package itself and for others."""
    parts = name.split(".")
    return parts[1] if parts[0] == "fmgauge" and len(parts) > 1 else None


def tree(path: Path) -> ast.Module:
    """The syntax tree of a source file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_names(node: ast.AST, module: str, *, is_package: bool) -> Iterator[str]:
    """Dotted names that an import statement may bring in, submodules included."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = module.split(".")[: (1 if is_package else 0) - node.level or None]
        base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)


def imports(path: Path, nodes: Iterator[ast.AST] | None = None) -> set[str]:
    """Every dotted name that a module imports, anywhere in it, or in `nodes` alone."""
    module, is_package = module_name(path), path.name == "__init__.py"
    walked = ast.walk(tree(path)) if nodes is None else nodes
    return {name for node in walked for name in imported_names(node, module, is_package=is_package)}


def run_on_import(nodes: list[ast.stmt]) -> Iterator[ast.AST]:
    """The statements that importing a module runs: no function's body, no TYPE_CHECKING block."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from run_on_import(node.orelse)
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            yield from run_on_import(getattr(node, field, []))
        for handler in getattr(node, "handlers", []):
            yield from run_on_import(handler.body)


def identifiers(path: Path) -> Iterator[str]:
    """Every name and attribute that a module's code mentions; its texts do not count."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name


@each_module
def test_every_module_has_a_layer(path):
    """A new module needs a place in the order before anything may import it."""
    assert layer(module_name(path)) in {None, *LAYERS}


@each_module
def test_imports_point_down(path):
    """A module imports its own package and layers below, TYPE_CHECKING imports included."""
    own = layer(module_name(path))
    below = LAYERS[LAYERS.index(own) :] if own else ()

    wanted = {layer(name) for name in imports(path)} & {*LAYERS}

    assert wanted <= {*below}


def test_the_package_itself_imports_nothing():
    """`import fmgauge` costs nothing."""
    assert imports(PACKAGE / "__init__.py") == set()


@each_module
def test_no_module_is_named_for_nothing(path):
    """A module's name says what is in it."""
    assert not NAMELESS & {
        word for part in module_name(path).split(".") for word in part.split("_")
    }


@each_module
def test_every_module_says_what_it_knows(path):
    """Every module opens with a docstring."""
    assert ast.get_docstring(tree(path))


@each_module
def test_no_function_is_longer_than_a_screen(path):
    """No function has more than 50 lines, docstring included."""
    functions = [
        node
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]

    assert [f.name for f in functions if f.end_lineno - f.lineno + 1 > MOST_LINES] == []


@each_module
def test_errors_are_caught_by_name(path):
    """Neither a bare except, nor Exception, nor BaseException is caught or suppressed."""
    handlers = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ExceptHandler)]
    caught = [ast.unparse(handler.type) if handler.type else "Exception" for handler in handlers]
    caught += [
        ast.unparse(argument)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress")
        for argument in node.args
    ]

    assert not BROAD & {word.strip("() ") for names in caught for word in names.split(",")}


@each_module
def test_only_the_transport_reads_the_measuring_clock(path):
    """One module reads a monotonic clock; all others are handed one."""
    if layer(module_name(path)) == "transport":
        return
    loop_times = [
        node
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute)
        and node.attr == "time"
        and ast.unparse(node.value).removesuffix("()").endswith("loop")
    ]

    assert not CLOCKS & {*identifiers(path)}
    assert loop_times == []


@each_module
def test_only_runs_reads_the_wall_clock(path):
    """Names, ledgers and leases take the time of day from runs.now_utc()."""
    if layer(module_name(path)) == "runs":
        return
    attributes = {
        ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)
    }

    assert not {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow"} & attributes


@each_module
def test_heavy_libraries_wait_until_they_are_needed(path):
    """What takes long to load is imported in the function that needs it."""
    allowed = {"pandas"} if layer(module_name(path)) in MAY_IMPORT_PANDAS else set()

    loaded = {name.split(".")[0] for name in imports(path, run_on_import(tree(path).body))}

    assert not loaded & (HEAVY - allowed)


IMPORT_ALL = """\
import importlib, os, signal, sys, threading
def state():
    return (
        os.getcwd(), dict(os.environ), threading.active_count(), list(sys.path),
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
    )
before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
assert state() == before
assert not {"boto3", "datasets", "matplotlib", "scipy", "xllamacpp"} & {*sys.modules}
"""


def test_importing_every_module_has_no_side_effects(tmp_path):
    """No import prints, writes a file, starts a thread, or changes folder or environment."""
    names = [module_name(path) for path in MODULES if path.name != "__main__.py"]
    environment = {
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": str(SOURCE),
    }

    done = subprocess.run(
        [sys.executable, "-B", "-c", IMPORT_ALL, *names],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
