"""Word weights of sentence embeddings: Integrated Gradients and Shapley values."""

from simcse_fast.attribution.attributions import Attributions
from simcse_fast.attribution.faithfulness import Faithfulness, faithfulness
from simcse_fast.attribution.integrated_gradients import integrated_gradients
from simcse_fast.attribution.shap_interface import shap_model
from simcse_fast.attribution.shapley import shapley_values
from simcse_fast.attribution.similarity import TokenSimilarity, token_similarity

__all__ = [
    "Attributions",
    "Faithfulness",
    "TokenSimilarity",
    "faithfulness",
    "integrated_gradients",
    "shap_model",
    "shapley_values",
    "token_similarity",
]
