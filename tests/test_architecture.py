"""The package's shape: imports point down, modules say what they know, one reads the clock."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = SOURCE / "fmgauge"
LAYERS = (  # a module may import those below it, and its own package
    "cli",
    "pipeline",
    "report",
    "decision",
    "metrics",
    "endpoints",
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
WALL_CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow"}
BROAD = {"Exception", "BaseException"}
MOST_LINES = 50

MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    """The dotted name of the module in the file at `path`."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(name: str) -> str | None:
    """The part of `name` below fmgauge; None for the package itself and for others."""
    parts = name.split(".")
    return parts[1] if parts[0] == "fmgauge" and len(parts) > 1 else None


def offences(rule: Callable[[Path], Iterable[str]]) -> dict[str, list[str]]:
    """What `rule` finds in each module that breaks it, by the module's path; {} where none does."""
    found = {str(path.relative_to(PACKAGE)): sorted(rule(path)) for path in MODULES}
    assert found, f"there is no module in {PACKAGE}"
    return {path: offence for path, offence in found.items() if offence}


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a source file, which no rule may change: all of them look at the same."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Every node of a source file's tree."""
    return tuple(ast.walk(tree(path)))


def imported_names(node: ast.AST, module: str, *, is_package: bool) -> Iterator[str]:
    """Dotted names that an import statement may bring in, submodules included."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = module.split(".")[: (1 if is_package else 0) - node.level or None]
        base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)


def imports(path: Path, nodes: Iterable[ast.AST] | None = None) -> set[str]:
    """Every dotted name that a module imports, anywhere in it, or in `nodes` alone."""
    module, is_package = module_name(path), path.name == "__init__.py"
    walked = nodes_of(path) if nodes is None else nodes
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
    for node in nodes_of(path):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name


def attributes(path: Path, *names: str) -> Iterator[ast.Attribute]:
    """Every mention of an attribute of one of these names in a module's code."""
    for node in nodes_of(path):
        if isinstance(node, ast.Attribute) and node.attr in names:
            yield node


def caught(path: Path) -> Iterator[str]:
    """The names of what a module catches or suppresses; a bare except catches Exception."""
    for node in nodes_of(path):
        if isinstance(node, ast.ExceptHandler):
            yield from words(node.type) if node.type else ["Exception"]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            for argument in node.args:
                yield from words(argument)


def words(node: ast.AST) -> Iterator[str]:
    """The parts of an expression between commas, without what brackets them."""
    yield from (word.strip("() ") for word in ast.unparse(node).split(","))


# --- rules ---------------------------------------------------------------------------------------


def test_every_module_has_a_layer():
    """A new module needs a place in the order before anything may import it."""

    def unknown_layer(path):
        return {layer(module_name(path))} - {None, *LAYERS}

    assert offences(unknown_layer) == {}


def test_imports_point_down():
    """A module imports its own package and layers below, TYPE_CHECKING imports included."""

    def imported_from_above(path):
        own = layer(module_name(path))
        below = LAYERS[LAYERS.index(own) :] if own in LAYERS else ()
        return {layer(name) for name in imports(path)} & {*LAYERS} - {*below}

    assert offences(imported_from_above) == {}


def test_the_package_itself_imports_nothing():
    """`import fmgauge` costs nothing."""
    assert imports(PACKAGE / "__init__.py") == set()


def test_no_module_is_named_for_nothing():
    """A module's name says what is in it."""

    def nameless_parts(path):
        return NAMELESS & {*module_name(path).replace(".", "_").split("_")}

    assert offences(nameless_parts) == {}


def test_every_module_says_what_it_knows():
    """Every module opens with a docstring."""

    def lacks(path):
        return [] if ast.get_docstring(tree(path)) else ["a docstring"]

    assert offences(lacks) == {}


def test_no_function_is_longer_than_a_screen():
    """No function has more than 50 lines, docstring included."""

    def long_functions(path):
        for node in nodes_of(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                n_lines = node.end_lineno - node.lineno + 1
                if n_lines > MOST_LINES:
                    yield f"{node.name}: {n_lines} lines"

    assert offences(long_functions) == {}


def test_errors_are_caught_by_name():
    """Neither a bare except, nor Exception, nor BaseException is caught or suppressed."""

    def broadly_caught(path):
        return BROAD & {*caught(path)}

    assert offences(broadly_caught) == {}


def test_only_the_transport_reads_the_measuring_clock():
    """One module reads a monotonic clock; all others are handed one."""

    def clocks(path):
        if layer(module_name(path)) == "transport":
            return set()
        loop_times = {
            ast.unparse(node)
            for node in attributes(path, "time")
            if ast.unparse(node.value).removesuffix("()").endswith("loop")
        }
        return CLOCKS & {*identifiers(path)} | loop_times

    assert offences(clocks) == {}


def test_only_runs_reads_the_wall_clock():
    """Names, ledgers and leases take the time of day from runs.now_utc()."""

    def wall_clocks(path):
        if layer(module_name(path)) == "runs":
            return set()
        names = {name.rpartition(".")[2] for name in WALL_CLOCKS}
        return WALL_CLOCKS & {ast.unparse(node) for node in attributes(path, *names)}

    assert offences(wall_clocks) == {}


def test_heavy_libraries_wait_until_they_are_needed():
    """What takes long to load is imported in the function that needs it."""

    def loaded(path):
        allowed = {"pandas"} if layer(module_name(path)) in MAY_IMPORT_PANDAS else set()
        at_once = imports(path, run_on_import(tree(path).body))
        return {name.split(".")[0] for name in at_once} & (HEAVY - allowed)

    assert offences(loaded) == {}


# --- importing -----------------------------------------------------------------------------------

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
