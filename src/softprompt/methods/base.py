"""The interface of methods: a module without inputs whose output is a prompt."""

from abc import ABC, abstractmethod

import torch
from torch import nn
from torch.nn import functional as F

from softprompt.prompt import Prompt


class Method(nn.Module, ABC):
    """How a prompt is parametrised while it is trained.

    It gets shapes, an initial prompt and a generator when it is built, and nothing when it runs.
    Its parameters are fp32 whatever the backbone's precision: in bf16, steps at a learning rate
    of 0.3 on values around 50 would be rounded away.
    """

    @abstractmethod
    def forward(self) -> Prompt:
        """The prompt at the current parameters, with its graph."""


def warm_start(
    method: Method, target: Prompt, *, steps: int = 500, learning_rate: float = 1e-3
) -> float:
    """Fit a reparametrised method to a prompt before training starts.

    Source: Li & Liang 2021, appendix: the MLP is fitted to real words' activations by Adam on the
    squared error, 500 steps (their rate is 1e-4; 1e-3 gets closer in as many steps).

    Args:
        method: to fit.
        target: the prompt that it should make.
        steps: of the optimizer.
        learning_rate: of the optimizer.

    Returns:
        The root mean squared error that is left, relative to the target's root mean square.
    """
    optimizer = torch.optim.Adam(method.parameters(), lr=learning_rate)
    wanted = target.to_tensors()
    scale = torch.stack([t.pow(2).mean() for t in wanted.values()]).sum()
    training = method.training
    method.eval()  # its dropout would draw from the global generator
    with torch.enable_grad():
        for _ in range(steps):
            made = method().to_tensors()
            errors = [F.mse_loss(made[name], wanted[name]) for name in wanted]
            loss = torch.stack(errors).sum() / scale
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    optimizer.zero_grad()
    method.train(training)
    return float(loss.detach().sqrt())
