"""What every method is: a module without inputs whose output is a prompt."""

from abc import ABC, abstractmethod

import torch
from torch import nn
from torch.nn import functional as F

from softprompt.prompt import Prompt


class Method(nn.Module, ABC):
    """How a prompt is parametrised while it is trained.

    It is given shapes, a start and a generator when it is built, and nothing when it runs. Its
    parameters are fp32 whatever the backbone's precision: steps of a learning rate of 0.3 on
    values around 50 are lost in bf16.
    """

    @abstractmethod
    def forward(self) -> Prompt:
        """The prompt at the present parameters, with their graph."""


def fit(method: Method, target: Prompt, *, steps: int = 500, learning_rate: float = 1e-3) -> float:
    """Bring a reparametrised method to a given prompt before training starts.

    Source: Li & Liang 2021, appendix: the MLP is fitted to real words' activations by Adam on the
    squared error, 500 steps (their rate is 1e-4; 1e-3 gets closer in as many steps).

    Returns:
        The root mean squared error that is left, relative to the target's root mean square.
    """
    optimiser = torch.optim.Adam(method.parameters(), lr=learning_rate)
    wanted = target.tensors()
    scale = torch.stack([t.pow(2).mean() for t in wanted.values()]).sum()
    training = method.training
    method.eval()  # its dropout would draw from the global generator
    with torch.enable_grad():
        for _ in range(steps):
            got = method().tensors()
            each = [F.mse_loss(got[name], wanted[name]) for name in wanted]
            loss = torch.stack(each).sum() / scale
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    optimiser.zero_grad()
    method.train(training)
    return float(loss.detach().sqrt())
