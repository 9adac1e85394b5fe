"""What the names of logged values say."""

import pytest

from lightning_practices._metric_names import direction_of, is_score

pytestmark = pytest.mark.plain

MEAN_PRECISION = [
    "map",
    "val_map",
    "val/mAP",
    "map50",
    "map_50_95",
    "bbox_mAP_75",
    "train.map_large",
]
NOT_SCORES = [
    "attention_map_entropy", "saliency_map", "map_size", "map_sparsity", "recall_entropy",
    "reward_variance", "iou_loss", "mapping", "heat_map_mean", "return_distance",
]  # fmt: skip


@pytest.mark.parametrize("name", MEAN_PRECISION)
def test_mean_average_precision_is_a_score(name: str) -> None:
    assert is_score(name)
    assert direction_of(name) == "max"


@pytest.mark.parametrize("name", NOT_SCORES)
def test_properties_and_other_maps_are_no_scores(name: str) -> None:
    assert not is_score(name)
    assert direction_of(name) != "max"


@pytest.mark.parametrize("name", ["val_acc", "train/mean_reward", "valF1", "top5"])
def test_scores_and_rewards(name: str) -> None:
    assert is_score(name)
