"""The interface of methods: a module without inputs whose output is a prompt."""

from abc import ABC, abstractmethod

import torch
from torch import nn
from torch.nn import functional as F

from softprompt.prompt import Prompt


class Method(nn.Module, ABC):
    """How a prompt is parametrised while it is trained.

    It gets the backbone's geometry, an initial prompt and a generator when it is built, and nothing
    when it runs.
    Its parameters are fp32 whatever the backbone's precision: in bf16, steps at a learning rate
    of 0.3 on values around 50 would be rounded away.
    """

    @abstractmethod
    def forward(self) -> Prompt:
        """Compute the prompt from the current parameters, with its autograd graph."""


def warm_start(
    method: Method, target: Prompt, *, steps: int = 500, learning_rate: float = 1e-3
) -> float:
    """Fit a reparametrised method to a prompt before training starts.

    Source: Li & Liang 2021, appendix: the MLP is fitted to real words' activations by Adam on the
    squared error, 500 steps (their rate is 1e-4; 1e-3 gets closer in as many steps).

    Args:
        method: the method to fit.
        target: the prompt to fit it to.
        steps: the number of optimizer steps.
        learning_rate: the learning rate of the optimizer.

    Returns:
        The root mean squared error before the last step, relative to the target's root mean square.
    """
    optimizer = torch.optim.Adam(method.parameters(), lr=learning_rate)
    targets = target.to_tensors()
    scale = torch.stack([t.pow(2).mean() for t in targets.values()]).sum()
    training = method.training
    method.eval()  # its dropout would draw from the global generator
    with torch.enable_grad():
        for _ in range(steps):
            tensors = method().to_tensors()
            errors = [F.mse_loss(tensors[name], targets[name]) for name in targets]
            loss = torch.stack(errors).sum() / scale
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    optimizer.zero_grad()
    method.train(training)
    return float(loss.detach().sqrt())
