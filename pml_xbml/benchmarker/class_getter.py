import inspect
from collections.abc import Callable
from typing import Any

from easy_module_attribute_getter import PytorchGetter

from .._checks import did_you_mean


class ClassGetter(PytorchGetter):
    """Finds classes by name, and says which name it was when it finds none.

    The original raises an ``ValueError`` without a message, also where a class that was found raises one
    while it is built.
    """

    def get(
        self,
        obj_name: str,
        class_name: str | None = None,
        params: dict[str, Any] | None = None,
        yaml_dict: dict[str, Any] | None = None,
        additional_params: dict[str, Any] | None = None,
        return_uninitialized: bool = False,
    ) -> Any:
        """As in ``EasyModuleAttributeGetter``.

        Args:
            obj_name: the kind of class: "loss", "model", "dataset", ….
            class_name: the name of the class.
            params: the arguments to build it with.
            yaml_dict: instead of name and arguments, ``{name: arguments}`` as it stands in a YAML file.
            additional_params: more arguments.
            return_uninitialized: whether to return the class and its arguments instead of an object.

        Returns:
            The object, or (class, arguments).

        Raises:
            ValueError: if no registered module has a class of that name.
            ValueError: if ``yaml_dict`` is not one name with its arguments, or an argument has no name or an
                unknown one.
        """
        if class_name is None:
            if not isinstance(yaml_dict, dict) or len(yaml_dict) != 1:
                raise ValueError(
                    f"{obj_name}: give one class with its arguments, {{Name: {{argument: value}}}}, got "
                    f"{yaml_dict!r}. To replace a class of an earlier YAML file, append ~OVERRIDE~ to the "
                    "key above it."
                )
            ((class_name, params),) = yaml_dict.items()
        if params is not None and not isinstance(params, dict):
            raise ValueError(
                f"{obj_name}: the arguments of {class_name} must be {{argument: value}}, got {params!r}"
            )
        known = self._known_names(obj_name)
        if class_name not in known:
            raise ValueError(f"{obj_name}: there is no class {class_name!r}{did_you_mean(class_name, known)}")
        found, arguments = super().get(
            obj_name, class_name, params, additional_params=additional_params, return_uninitialized=True
        )
        if return_uninitialized:
            return found, arguments
        try:
            return found(**arguments)
        except TypeError as error:
            # Of a function that hands on **kwargs, as torchvision's networks do, no one can tell before.
            if "unexpected keyword argument" not in str(error):
                raise
            raise ValueError(f"{obj_name}: {class_name} does not take {arguments}: {error}") from error

    def _known_names(self, obj_name: str) -> set[str]:
        names: set[str] = set()
        for source in getattr(self, obj_name):
            names.update([source.__name__] if inspect.isclass(source) else dir(source))
        return names


def argument_names(function: Callable[..., Any]) -> set[str] | None:
    """The names of the arguments that a function, or the constructor of a class, takes.

    Args:
        function: the function or class. A constructor that hands ``**kwargs`` on is read together with those
            of the classes above it.

    Returns:
        The names; None if any name may be right.
    """
    functions = [function]
    if inspect.isclass(function):
        functions = [vars(base)["__init__"] for base in function.__mro__ if "__init__" in vars(base)]
    names: set[str] = set()
    for each in functions:
        parameters = inspect.signature(each).parameters.values()
        names.update(parameter.name for parameter in parameters)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return names
    return None
