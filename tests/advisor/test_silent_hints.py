"""Hints that come close to healthy programs and stay silent on them."""

import pytest

from lightning_practices.advisor import advise
from tests.advisor.programs import HEALTHY, load_all

load_all()
pytestmark = [
    pytest.mark.plain,
    pytest.mark.filterwarnings("ignore:Found .* module:UserWarning"),  # in eval mode, on purpose
]
SILENT = {
    "LP123": ["weights_within_a_box", "weights_with_noise_in_each_step"],
    "LP135": [
        "q_learning_with_a_target_network", "double_q_learning_without_a_target_network",
        "potentials_of_two_states",
    ],
    "LP136": ["embedding_with_two_names", "one_encoder_for_both_views"],
    "LP212": ["logarithm_of_a_sum_of_exponentials", "logarithm_of_a_share_of_all_inputs"],
    "LP230": [
        "log_sigmoid_of_both_sides", "softplus_of_both_sides", "logarithm_of_a_positive_output",
    ],
    "LP274": [
        "learnt_positions", "learnt_positions_from_zero", "sets_in_random_order",
        "sets_that_are_sorted", "causal_attention_without_positions",
        "tags_of_the_tokens_themselves", "decoder_on_text", "transformer_of_torch",
    ],
    "LP504": ["convolution_activation_norm", "selu_by_the_book"],
    "LP512": [
        "lora_within_a_perceptron", "shallow_linear_autoencoder", "autoencoder_with_a_linear_code",
        "factorised_layer", "linear_probe_on_frozen_features", "attention_written_out",
        "transformer_of_torch", "residual_blocks_without_norms", "separable_convolutions",
        "mixture_of_experts", "activation_of_an_own_autograd_function",
        "activation_of_torch_script", "quadratic_network", "gan", "lora_of_matrices",
    ],
    "LP521": ["cnn_on_digits"],
    "LP541": ["selu_by_the_book", "mlp_on_digits"],
    "LP542": ["selu_by_the_book"],
    "LP561": [
        "shared_activation_and_dropout", "copies_of_a_layer", "blocks_that_share_a_small_part",
        "transformer_of_torch",
    ],
    "LP604": ["warmup_then_cosine", "divisions_of_recipes", "accumulated_one_cycle"],
    "LP607": ["functions_of_two_groups", "one_cycle_of_the_fit"],
    "LP610": ["cosine_of_epochs"],
    "LP613": ["right_monitors", "trial"],
    "LP614": ["exponential_by_epoch_until_early_stopping", "trial"],
    "LP272": ["normal_noise", "residual_of_a_blind_denoiser", "noise_prediction"],
    "LP626": ["accumulation_of_two_batches", "gan_by_hand"],
    "LP146": ["fixed_classifier", "temperature_of_a_trained_model", "lora_of_matrices"],
    "LP269": ["pairs_on_the_diagonal", "scale_that_is_learnt", "contrastive_pairs"],
    "LP229": ["policy_gradient", "variational_autoencoder"],
    "LP633": [
        "mlp_on_digits", "contrastive_in_large_batches", "denoising_in_large_batches",
    ],
    "LP634": ["accumulation_without_batch_norm"],
    "LP653": ["values_of_all_ranks", "metrics_of_all_ranks"],
    "LP655": ["right_monitors", "limited_stream"],
    "LP643": ["rate_of_one_before_the_factor_of_a_transformer", "fine_tuning_with_a_low_rate"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("id", "name"), [(id, name) for id, names in SILENT.items() for name in names]
)
def test_hint_is_silent(id: str, name: str) -> None:
    program = next(make for key, make in HEALTHY.items() if key.endswith(f".{name}"))
    assert len(advise(*program(), select=[id])) == 0
