from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np
from powerful_benchmarker import split_managers
from powerful_benchmarker.utils import common_functions as benchmarker_c_f
from powerful_benchmarker.utils import dataset_utils


class QueryGallerySplitManager(split_managers.ClassDisjointSplitManager):
    """Splits of a data set whose test queries are searched for in a gallery.

    The classes to train on are dealt to training and validation, in as many ways as there are partitions. The
    split "test" is the queries, and is compared with the split "gallery".

    Args:
        num_training_partitions: Number of parts that the classes to train on are dealt to; each is one way's
            validation classes.
        num_training_sets: how many of these ways to train.
        **options: those of powerful-benchmarker's ``ClassDisjointSplitManager``.
    """

    #: The splits that each split is compared with, where that is not itself.
    reference_splits = {"test": ["gallery"]}  # noqa: RUF012  read-only, as powerful-benchmarker's own

    def __init__(self, num_training_partitions: int, num_training_sets: int, **options: Any) -> None:
        super().__init__(num_training_partitions, num_training_sets, **options)
        self.split_names = ["train", "val", "test", "gallery"]

    def _create_split_schemes(self, datasets: dict[str, dict[str, Any]]) -> OrderedDict[str, Any]:
        any_dataset = benchmarker_c_f.first_val_of_dict(benchmarker_c_f.first_val_of_dict(datasets))
        parts: dict[str, np.ndarray[Any, Any]] = any_dataset.parts
        labels = np.asarray(any_dataset.labels)
        trainval_classes = np.unique(labels[parts["train"]])
        schemes: OrderedDict[str, Any] = OrderedDict()
        for partition, (train, val) in enumerate(self.get_kfold_generator(any_dataset, trainval_classes)):
            if partition == self.num_training_sets:
                break
            indices = {
                "train": np.flatnonzero(np.isin(labels, trainval_classes[train])),
                "val": np.flatnonzero(np.isin(labels, trainval_classes[val])),
                "test": parts["query"],
                "gallery": parts["gallery"],
            }
            schemes[self.get_split_scheme_name(partition)] = OrderedDict(
                (
                    transform_type,
                    OrderedDict(
                        (split, dataset_utils.create_subset(datasets[transform_type][split], indices[split]))
                        for split in self.split_names
                    ),
                )
                for transform_type in datasets
            )
        return schemes

    def class_disjoint_assertion(self) -> None:
        """Checks that training and validation have no class in common with the other splits."""
        for transform_type in self.split_scheme_holder.get_transform_types():
            for held_out in ("test", "gallery"):
                self.assert_across(
                    "split_scheme_names",
                    "disjoint",
                    within_group=True,
                    attribute_descriptor="class labels",
                    attribute_getter=self.get_list_for_class_disjoint_assertion,
                    transform_types=[transform_type],
                    split_names=["train", "val", held_out],
                )

    def get_dataset_dict(
        self,
        transform_type: str,
        inclusion_list: Iterable[str] | None = None,
        exclusion_list: Iterable[str] | None = None,
    ) -> dict[str, Any]:
        """The splits that are asked for, and those that they are compared with.

        Args:
            transform_type: as in powerful-benchmarker.
            inclusion_list: as in powerful-benchmarker.
            exclusion_list: as in powerful-benchmarker.

        Returns:
            Data sets by split name.
        """
        if inclusion_list is not None:
            wanted = list(inclusion_list)
            inclusion_list = wanted + [
                reference for split in wanted for reference in self.reference_splits.get(split, [])
            ]
        datasets: dict[str, Any] = super().get_dataset_dict(transform_type, inclusion_list, exclusion_list)
        return datasets

    def get_test_set_name(self) -> str:
        """The first part of the names of the folders of each way of dealing the classes."""
        return "QueryGallery"
