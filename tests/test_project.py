"""What the project promises about itself: who imports whom, what an import costs, what is said."""

import ast
import graphlib
import importlib
import importlib.util
import inspect
import re
import runpy
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = (
    ("attnjax.typing", "attnjax.numerics", "attnjax.operands", "attnjax.platform"),
    ("attnjax.masks", "attnjax.scores", "attnjax.dropout"),
    ("attnjax.ops",),
    ("attnjax.sharding",),
    ("attnjax.validate", "attnjax.api", "attnjax.additive", "attnjax.decoding"),
    ("attnjax.autotune",),
    ("attnjax",),  # the package itself: attention, explain and what they take, by one name each
    ("attnjax.nn",),
    ("attnjax.focus",),
    ("attnjax.models",),
    ("train.common",),
    ("train",),  # the tasks
)
LEAVES = ("attnjax.bench", "attnjax.plan")  # import anything, are imported by nothing
LIBRARY_NEEDS = {"jax", "jaxlib", "flax", "jaxtyping", "numpy", "optax"}
# Imported where they are used, with an error that says how to install them.
OPTIONAL = {
    "attnjax.focus.report.page": {"jinja2"},
    "attnjax.focus.report.run_page": {"jinja2"},
    "attnjax.models.pretrained.files": {"safetensors"},
}
PUBLIC = {
    name: importlib.import_module(name)
    for name in (
        "attnjax",
        "attnjax.autotune",
        "attnjax.focus",
        "attnjax.focus.faithful",
        "attnjax.focus.maps",
        "attnjax.focus.report",
        "attnjax.focus.steady",
        "attnjax.models",
        "attnjax.models.decode",
        "attnjax.models.pretrained",
        "attnjax.nn",
        "attnjax.sharding",
    )
}


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    _module_name(path): path
    for package in ("attnjax", "train")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def _imports(name: str, *, at_import: bool = False) -> set[str]:
    """The modules that `name` imports: anywhere, or only those that importing it imports."""
    path = MODULES[name]
    tree = ast.parse(path.read_text())
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in _run_on_import(tree) if at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                found.add(submodule if submodule in MODULES else base)
    return found


def _run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    """Walks the statements that run when the module is imported: no function bodies, no types."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _run_on_import(child)


def _inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _layer(name: str) -> int:
    """The layer whose longest name covers `name`."""
    fits = [
        (len(package), rank)
        for rank, packages in enumerate(LAYERS)
        for package in packages
        # `attnjax` alone stands for its __init__.py, or a new module would pass as part of it.
        if (name == package if package == "attnjax" else _inside(name, package))
    ]
    assert fits, f"give {name} a place in LAYERS, or move it"
    return max(fits)[1]


def _is_leaf(name: str) -> bool:
    return any(_inside(name, leaf) for leaf in LEAVES)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    assert _is_leaf(name) or _layer(name) >= 0
    for imported in _imports(name) & MODULES.keys():
        assert _is_leaf(name) or not _is_leaf(imported), f"nothing may import {imported}"
        if _is_leaf(name):
            assert imported.startswith("attnjax"), f"{name} imports {imported}"
        elif name != "attnjax":  # it gathers names, and reaches higher packages lazily
            assert _layer(imported) <= _layer(name), f"{name} imports {imported}, which is higher"


@pytest.mark.parametrize("name", [n for n in MODULES if re.fullmatch(r"train\.(?!common\b)\w+", n)])
def test_tasks_do_not_import_each_other(name):
    for imported in _imports(name) & MODULES.keys():
        assert (
            _inside(imported, name)
            or not _inside(imported, "train")
            or _inside(imported, "train.common")
        ), f"{name} imports the task {imported}: move what they share to train/common"


def test_no_import_cycles():
    graph = {name: (_imports(name) & MODULES.keys()) - {name} for name in MODULES}
    graph["attnjax"] = _imports("attnjax", at_import=True) & MODULES.keys()  # the rest is lazy
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize("name", [n for n in MODULES if _inside(n, "attnjax") and not _is_leaf(n)])
def test_library_needs_only_its_dependencies(name):
    outside = {imported.partition(".")[0] for imported in _imports(name)}
    allowed = LIBRARY_NEEDS | OPTIONAL.get(name, set())
    assert outside - sys.stdlib_module_names - {"attnjax", "__future__"} <= allowed
    at_import = {imported.partition(".")[0] for imported in _imports(name, at_import=True)}
    assert not at_import & OPTIONAL.get(name, set())


@pytest.mark.parametrize("name", [n for n in MODULES if not _inside(n, "train")])
def test_library_prints_nothing(name):
    if _is_leaf(name) or name.endswith(".__main__"):
        return
    calls = [n for n in ast.walk(ast.parse(MODULES[name].read_text())) if isinstance(n, ast.Call)]
    assert "print" not in {ast.unparse(call.func) for call in calls}


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return done.stdout


def test_import_pulls_in_nothing_heavy():
    heavy = {"optax", "orbax", "tensorflow", "tensorflow_datasets", "grain", "tyro"}
    loaded = set(_run("import attnjax, sys; print(*sys.modules)").split())
    assert "attnjax" in loaded
    assert not heavy & loaded


def test_nn_is_reached_by_its_name():
    # Flax NNX imports optax, so attnjax imports its modules only when they are asked for.
    _run("import attnjax, sys; assert 'attnjax.nn' not in sys.modules; attnjax.nn.__all__")


def test_import_is_cheap():
    # Processor time, not wall time: the other test workers share the cores.
    code = (
        "import time, jax, flax; start = time.process_time(); import attnjax;"
        "print(time.process_time() - start)"
    )
    _run(code)  # writes the bytecode, which an installation does once
    assert statistics.median(float(_run(code)) for _ in range(5)) <= 0.2


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in PUBLIC for name in PUBLIC[module].__all__]
)
def test_public_names_have_docstrings(module, name):
    value = getattr(PUBLIC[module], name)
    inspected = callable(value) or inspect.ismodule(value)
    assert not inspected or (value.__doc__ or "").strip(), f"{module}.{name} has no docstring"


def test_public_names_are_documented():
    page = (ROOT / "docs" / "api.md").read_text()
    assert page == runpy.run_path(str(ROOT / "docs" / "make_api.py"))["render"](), "run `make docs`"
    described = set(re.findall(r"^\| `([\w.]+)` \| \S.* \|$", page, flags=re.MULTILINE))
    assert described == {f"{module}.{name}" for module in PUBLIC for name in PUBLIC[module].__all__}


def _readme_blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_readme_commands_exist():
    commands = "\n".join(_readme_blocks("bash"))
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    asked = set(re.findall(r"\bmake ([a-z-]+)", commands))
    assert asked and asked <= targets, f"no such make target: {asked - targets}"
    modules = set(re.findall(r"python -m ((?:train|attnjax)[\w.]*)", commands))
    assert modules and modules <= MODULES.keys(), f"no such module: {modules - MODULES.keys()}"


@pytest.mark.parametrize("block", _readme_blocks("python"))
def test_readme_examples_run(block):
    exec(compile(block, "<README.md>", "exec"), {})
