import copy
from typing import Any

from powerful_benchmarker import factories

_COMPARED_TO_SELF = "compared_to_self"


class TesterFactory(factories.TesterFactory):
    """Builds PML's testers, which have no ``reference_set`` any more."""

    def _create_general(self, tester_type: dict[str, Any], plots_folder: str | None, **kwargs: Any) -> Any:
        tester_type = copy.deepcopy(tester_type)
        for name, arguments in tester_type.items():
            reference_set = (arguments or {}).pop("reference_set", _COMPARED_TO_SELF)
            if reference_set != _COMPARED_TO_SELF:
                raise ValueError(
                    f"{name}: reference_set is {reference_set!r}; PML's testers have none any more, and "
                    f"{_COMPARED_TO_SELF!r} is what they do. To search in another split, use a split manager "
                    "that says in which, as QueryGallerySplitManager does."
                )
        return super()._create_general(tester_type, plots_folder, **kwargs)
