"""Soft prompts as estimators of scikit-learn: pipelines, cross-validation, grid search.

``import softprompt`` does not import it: ``from softprompt.sklearn import SoftPromptClassifier``.
"""

from softprompt.sklearn.classifier import SoftPromptClassifier
from softprompt.sklearn.estimator import SoftPromptEstimator, release_backbone
from softprompt.sklearn.regressor import SoftPromptRegressor

__all__ = [
    "SoftPromptClassifier",
    "SoftPromptEstimator",
    "SoftPromptRegressor",
    "release_backbone",
]
