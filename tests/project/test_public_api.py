"""The public interface is frozen: every exported name, its parameters, and their defaults are in public_api.txt.

Run this file to print the list.
"""

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

LISTED = Path(__file__).with_name("public_api.txt")
INTEGRATIONS = sorted(
    f"atk.integrations.{path.stem}"
    for path in (Path(__file__).parents[2] / "atk" / "integrations").glob("*.py")
    if path.stem not in ("__init__", "rebinding")
)
MODULES = ("atk", "atk.nn", "atk.data", "atk.distributed", "atk.soundscapes", "atk.plan", *INTEGRATIONS)
DUNDERS = ("__call__", "__getitem__", "__iter__", "__len__")
ADVICE = """
If the change is intended, name it in CHANGELOG.md and update the list:
    python tests/project/test_public_api.py > tests/project/public_api.txt"""


def parameters_of(function: Callable) -> str:
    """Names, kinds, and defaults of the parameters, without annotations."""
    signature = inspect.signature(function)
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def members_of(name: str, cls: type) -> Iterator[str]:
    """One line for each public method and property that a class or its bases in atk define."""
    attributes = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("atk"):
            attributes |= vars(base)
    for member, value in sorted(attributes.items()):
        if member.startswith("_") and member not in DUNDERS:
            continue
        if isinstance(value, classmethod | staticmethod):
            yield f"{name}.{member}{parameters_of(value.__func__)}  # {type(value).__name__}"
        elif inspect.isfunction(value):
            yield f"{name}.{member}{parameters_of(value)}"
        elif isinstance(value, property):
            yield f"{name}.{member}  # property"


def interface(module: str) -> list[str]:
    """One line for each public name of a module, each followed by the lines of its members."""
    lines = []
    for attribute in sorted(importlib.import_module(module).__all__):
        name = f"{module}.{attribute}"
        if attribute not in vars(importlib.import_module(module)):
            lines.append(f"{name}  # defined when the library is imported")
            continue
        value = getattr(importlib.import_module(module), attribute)
        if inspect.ismodule(value):
            lines.append(f"{name}  # module")
        elif inspect.isclass(value) and issubclass(value, Exception):
            lines.append(f"{name}  # {', '.join(base.__name__ for base in value.__bases__)}")
        elif inspect.isclass(value):
            lines += [f"{name}{parameters_of(value)}  # class", *members_of(name, value)]
        elif callable(value):
            lines.append(f"{name}{parameters_of(value)}")
        else:
            lines.append(f"{name} = {value!r}")
    return lines


@pytest.mark.parametrize("module", MODULES)
def test_names_and_signatures_match_the_list(module):
    sections = dict(section.split("\n", 1) for section in LISTED.read_text().split("\n\n"))
    listed = sections[f"# {module}"].splitlines()
    difference = difflib.unified_diff(listed, interface(module), "listed", "actual", lineterm="", n=0)
    assert listed == interface(module), "\n".join(["", *difference, ADVICE])


if __name__ == "__main__":
    print("\n\n".join("\n".join([f"# {module}", *interface(module)]) for module in MODULES))
