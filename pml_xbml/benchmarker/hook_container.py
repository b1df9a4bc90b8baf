from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from powerful_benchmarker.utils import constants
from pytorch_metric_learning.utils import common_functions as c_f

from ..monitoring import PrototypeHookContainer
from .record_keeper import RecordKeeper


class HookContainer(PrototypeHookContainer):
    """The plugin's hooks, as powerful-benchmarker calls them.

    - Splits to evaluate are names; what each is compared with is in the tester's ``reference_split_names``.
    - Resuming goes on from the checkpoint, with records, random numbers and sampler as they were then.
    - The best model is one of those that were trained, as the accuracy that powerful-benchmarker reports is.

    Args:
        record_keeper: None where powerful-benchmarker only asks for the names of tables.
        **options: :class:`~pml_xbml.monitoring.PrototypeHookContainer`'s. Checkpoints are made whenever
            models are saved, so that there is one record of how far training has come; pictures are drawn not
            more often.
    """

    def __init__(self, record_keeper: Any, **options: Any) -> None:
        super().__init__(RecordKeeper() if record_keeper is None else record_keeper, **options)

    def end_of_epoch_hook(
        self,
        tester: Any,
        dataset_dict: Mapping[str, Any],
        model_folder: str,
        test_interval: int = 1,
        patience: int | None = None,
        splits_to_eval: Sequence[Any] | None = None,
        test_collate_fn: Callable[..., Any] | None = None,
    ) -> Callable[[Any], bool]:
        """As in PML.

        Args:
            tester: as in PML.
            dataset_dict: the splits to evaluate, and those that they are compared with.
            model_folder: as in PML.
            test_interval: as in PML; checkpoints are made as often, pictures not more often.
            patience: as in PML.
            splits_to_eval: names; all of ``dataset_dict`` that nothing is only compared with, if left out.
            test_collate_fn: as in PML.

        Returns:
            As in PML.
        """
        self.checkpoint_interval = test_interval
        if self.picture_interval is not None:
            self.picture_interval = max(self.picture_interval, test_interval)
        if splits_to_eval is None:
            only_references = _only_references(tester)
            splits_to_eval = [split for split in dataset_dict if split not in only_references]
        return super().end_of_epoch_hook(
            tester,
            dataset_dict,
            model_folder,
            test_interval,
            patience,
            _with_references(tester, splits_to_eval),
            test_collate_fn,
        )

    def run_tester_separately(
        self,
        tester: Any,
        dataset_dict: Mapping[str, Any],
        epoch: int | str,
        trunk: Any,
        embedder: Any,
        splits_to_eval: Sequence[str] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        skip_eval_if_already_done: bool = True,
    ) -> bool:
        """As in PML.

        Args:
            tester: as in PML.
            dataset_dict: the splits to evaluate, and those that they are compared with.
            epoch: an epoch, or the name of an ensemble's model.
            trunk: as in PML.
            embedder: as in PML.
            splits_to_eval: names.
            collate_fn: as in PML.
            skip_eval_if_already_done: as in PML.

        Returns:
            Whether anything was evaluated.
        """
        splits = list(dataset_dict if splits_to_eval is None else splits_to_eval)
        if skip_eval_if_already_done:
            splits = self.get_splits_to_eval(tester, dataset_dict, epoch, splits)
            if not splits:
                c_f.LOGGER.info("Already evaluated")
                return False
        was_run: bool = super().run_tester_separately(
            tester,
            dataset_dict,
            epoch,
            trunk,
            embedder,
            _with_references(tester, splits),
            collate_fn,
            skip_eval_if_already_done=False,
        )
        return was_run

    def end_of_testing_hook(self, tester: Any) -> None:
        """As in PML; an ensemble has no epochs, and none of them is the best.

        Args:
            tester: as in PML.
        """
        if all(isinstance(accuracies["epoch"], int) for accuracies in tester.all_accuracies.values()):
            super().end_of_testing_hook(tester)
            return
        for split_name, accuracies in tester.all_accuracies.items():
            self.record_keeper.update_records(
                accuracies, accuracies["epoch"], parent_name=self.record_group_name(tester, split_name)
            )

    def load_latest_saved_models(
        self, trainer: Any, model_folder: str, device: Any = None, best: bool = False
    ) -> int:
        """As in PML, from the checkpoint where that is what is wanted.

        Args:
            trainer: as in PML.
            model_folder: as in PML.
            device: as in PML.
            best: go back to the best model instead.

        Returns:
            The epoch to train next.
        """
        saved_epoch, _ = c_f.latest_version(model_folder)
        was_begun_elsewhere = saved_epoch > 0 and not self._checkpoint(model_folder).exists()
        if best or was_begun_elsewhere:
            epoch: int = super().load_latest_saved_models(trainer, model_folder, device, best)
            return epoch
        return self.resume(trainer, model_folder)

    def save_models(
        self, trainer: Any, model_folder: str, curr_suffix: int | str, prev_suffix: int | str | None = None
    ) -> None:
        """As in PML; the first best model takes the place of the untrained one.

        Args:
            trainer: as in PML.
            model_folder: as in PML.
            curr_suffix: as in PML.
            prev_suffix: as in PML.
        """
        if prev_suffix is None and str(curr_suffix).startswith("best") and curr_suffix != "best0":
            prev_suffix = "best0"
        super().save_models(trainer, model_folder, curr_suffix, prev_suffix)

    def get_best_epoch_and_accuracy(
        self, tester: Any, split_name: str, ignore_epoch: tuple[int, ...] = constants.IGNORE_ALL_UNTRAINED
    ) -> tuple[int | None, float]:
        """As in PML, among the epochs that were trained.

        Args:
            tester: as in PML.
            split_name: as in PML.
            ignore_epoch: as in PML; powerful-benchmarker's numbers of untrained models.

        Returns:
            As in PML.
        """
        best: tuple[int | None, float] = super().get_best_epoch_and_accuracy(tester, split_name, ignore_epoch)
        return best

    def record_group_name(self, tester: Any, split_name: str) -> str:
        """As in PML; known before anything was tested.

        Args:
            tester: as in PML.
            split_name: as in PML.

        Returns:
            The name of the table.
        """
        tester.reference_split_names.setdefault(split_name, [split_name])
        name: str = super().record_group_name(tester, split_name)
        return name

    def optimizer_custom_attr_func(self, optimizer: Any) -> dict[str, float]:
        """The learning rates to record.

        Args:
            optimizer: with one group of parameters, or with the prototypes in a second one.

        Returns:
            The learning rates by name.
        """
        return {group.get("record_name", "lr"): group["lr"] for group in optimizer.param_groups}


def _with_references(tester: Any, split_names: Iterable[str]) -> list[tuple[str, list[str]]]:
    # Copies, because PML's testers reorder the lists.
    return [(split, list(tester.reference_split_names.get(split, [split]))) for split in split_names]


def _only_references(tester: Any) -> set[str]:
    compared_with = {split for references in tester.reference_split_names.values() for split in references}
    return compared_with - set(tester.reference_split_names)
