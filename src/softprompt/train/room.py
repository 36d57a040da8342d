"""How much room a run's rows have beside its prompt."""

import torch

from softprompt.methods import Method
from softprompt.recipe.sections import Recipe
from softprompt.tasks import Room


def room_of(recipe: Recipe, method: Method) -> Room:
    """The recipe's longest row, and the positions that the method's prompt takes.

    Whether it takes any is asked of the prompt itself: a start from elsewhere may.
    """
    training = method.training
    method.eval()  # its dropout would draw from the global generator
    with torch.no_grad():
        taken = method().taken
    method.train(training)
    return Room(recipe.data.max_length, taken)
