"""A second module object over the very same parameters, and putting it in the first one's place."""

from typing import TypeVar

from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def share_state(module: nn.Module, cls: type[ModuleT]) -> ModuleT:
    """A `cls` that holds the very Parameter, buffer and child objects of `module`, its settings and its hooks.

    Registries (parameters, buffers, children, hooks) are copied as dictionaries, so that adding a child to the result
    leaves `module` as it is. No `__init__` runs: nothing is initialised, no random number is drawn.
    """
    shared = cls.__new__(cls)
    for key, value in module.__dict__.items():
        shared.__dict__[key] = value.copy() if isinstance(value, (dict, set)) else value
    shared.__dict__.pop("_compiled_call_impl", None)  # made by module.compile(): it would run the old module
    return shared


def replace_module(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `root` holds `old`, under all its names."""
    for module in list(root.modules()):
        for name, child in module._modules.items():
            if child is old:
                module._modules[name] = new
