"""Both data planes offer what ``native.plane.DataPlane`` names, under the same names; mypy checks the types."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {
    "DataPlane": ROOT / "native/plane.py",
    "Group": ROOT / "native/_native.pyi",
    "CudaGroup": ROOT / "native/cuda/group.py",
}


def members(name):
    """Public methods and properties by name: (is a property, positional, keyword-only, those with defaults)."""
    tree = ast.parse(SOURCES[name].read_text())
    (found,) = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name]
    result = {}
    for node in found.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            names, keywords = [a.arg for a in node.args.args], [a.arg for a in node.args.kwonlyargs]
            optional = set(names[len(names) - len(node.args.defaults) :])
            optional |= {a for a, default in zip(keywords, node.args.kw_defaults, strict=True) if default is not None}
            is_property = any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list)
            result[node.name] = (is_property, names, keywords, optional)
    return result


def attributes(name):
    """What ``__init__`` gives an instance."""
    tree = ast.parse(SOURCES[name].read_text())
    targets = [t for node in ast.walk(tree) if isinstance(node, ast.Assign) for t in node.targets]
    flat = [e for t in targets for e in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return {t.attr for t in flat if isinstance(t, ast.Attribute)}


@pytest.mark.parametrize("name", ["Group", "CudaGroup"])
def test_a_data_plane_has_every_member_with_the_same_arguments(name):
    offered, held = members(name), attributes(name)
    for member, (is_property, names, keywords, _) in members("DataPlane").items():
        if is_property:
            assert (member in offered and offered[member][0]) or member in held, f"{name} has no {member}"
            continue
        there_property, there_names, there_keywords, optional = offered[member]
        assert not there_property, member
        assert there_names[: len(names)] == names, member
        assert set(keywords) <= set(there_keywords), member
        more = set(there_names[len(names) :]) | (set(there_keywords) - set(keywords))
        assert more <= optional, f"{name}.{member} needs {more - optional}, which the other does not know"


def test_the_cpu_plane_has_nothing_that_the_interface_leaves_out():
    assert set(members("Group")) == set(members("DataPlane"))
