"""Input × gradient against a head whose logits are linear."""

import numpy as np
import torch

from mil.heads.head import MilOutput
from mil.maps.gradients import input_gradients


class Rule:
    """A head whose logits are known: the mean of x · w over the bag."""

    def __init__(self, weights):
        self.weights = torch.tensor(weights)  # (D, C)
        self.of_slide = self

    def standardise(self, bags):
        return (bags.features.float() - 1) / 2

    def __call__(self, bags):
        return MilOutput(self.standardise(bags).mean(0, keepdim=True) @ self.weights, None, None)


def test_input_gradients_of_a_linear_rule_are_its_parts():
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(7, 5)).astype(np.float32))
    rules = [Rule(rng.normal(size=(5, 2)).astype(np.float32)) for _ in range(3)]
    found = input_gradients(rules, features, torch.device("cpu"))
    exact = np.mean([((features - 1) / 2 @ rule.weights).numpy() / 7 for rule in rules], axis=0)
    assert np.allclose(found, exact, atol=1e-6)
