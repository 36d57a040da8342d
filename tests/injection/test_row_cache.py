"""The cache of rows that join and leave holds what each row has put there, and zeros elsewhere."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softprompt.injection.row_cache import RowCache

HEADS, SIZE, LAYERS = 2, 3, 2
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.lists(st.integers(1, 90), min_size=1, max_size=4)),
        st.tuples(st.just("append"), st.integers(1, 70)),
        st.tuples(st.just("prepend"), st.integers(1, 5)),
        st.tuples(st.just("drop"), st.integers(0, 20)),
        st.tuples(st.just("rewind"), st.none()),
    ),
    min_size=2,
    max_size=9,
)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


def append_column(cache: RowCache, count: int) -> list[torch.Tensor]:
    """Append a column as a pass does; what was appended in each layer."""
    new = [draw(count, HEADS, 1, SIZE) for _ in range(LAYERS)]
    for layer, states in enumerate(new):
        cache.own.cache.update(states, -states, layer)
    return new


def join_rows(cache: RowCache, lengths: list[int]) -> list[list[torch.Tensor]]:
    """Append rows that were run as a batch with padding; what each has in each layer."""
    new, width = RowCache("causal"), max(lengths)
    states = [draw(len(lengths), HEADS, width, SIZE) for _ in range(LAYERS)]
    for layer, tensor in enumerate(states):
        new.own.cache.update(tensor, -tensor, layer)
    cache.join(new, {row: slice(width - n, width) for row, n in enumerate(lengths)})
    return [[t[row, :, width - n :] for t in states] for row, n in enumerate(lengths)]


def act(cache: RowCache, rows: list[list[torch.Tensor]], action: str, number: int | None) -> None:
    """Do the same to the cache and to a list of the rows' tensors."""
    match action:
        case "append":
            for _ in range(number):
                added = append_column(cache, len(rows))
                cache.advance()
                for at, row in enumerate(rows):
                    row[:] = [torch.cat([a, b[at]], 1) for a, b in zip(row, added, strict=True)]
        case "prepend":
            at = number % len(rows)
            before = [draw(HEADS, number, SIZE) for _ in range(LAYERS)]
            cache.own.prepend(at, [(t, -t) for t in before])
            rows[at] = [torch.cat(pair, 1) for pair in zip(before, rows[at], strict=True)]
        case "drop":
            at = number % len(rows)
            cache.drop(at)
            rows[at] = rows[-1]
            rows.pop()
        case _:
            append_column(cache, len(rows))
            cache.own.rewind()


@settings(deadline=None, max_examples=60)
@given(actions=ACTIONS)
def test_rows_are_what_was_put_into_them(actions):
    """The oracle is a list of tensors per row."""
    torch.manual_seed(0)
    cache, rows = RowCache("causal"), list[list[torch.Tensor]]()
    for action, argument in [("join", [3, 1]), *actions]:
        if action == "join":
            rows += join_rows(cache, argument)
        elif rows:
            act(cache, rows, action, argument)
        compare(cache, rows)
        if rows:
            alone = RowCache("causal")
            alone.take_row(cache, len(rows) - 1)
            compare(alone, rows[-1:])


def compare(cache: RowCache, expected: list[list[torch.Tensor]]) -> None:
    width = max([row[0].shape[1] for row in expected], default=0)
    assert cache.own.width == width
    for number, layer in enumerate(cache.own.layers):
        assert layer.keys.shape == (len(expected), HEADS, width, SIZE)
        assert layer.get_seq_length() == width
        for row, of_row in enumerate(expected):
            right = torch.zeros(HEADS, width, SIZE)
            right[:, width - of_row[number].shape[1] :] = of_row[number]
            assert torch.equal(layer.keys[row], right)
            assert torch.equal(layer.values[row], -right)
    if expected:
        mask = torch.tensor([[0] * (width - r[0].shape[1]) + [1] * r[0].shape[1] for r in expected])
        assert torch.equal(cache.own.make_mask(), mask)


def test_most_steps_copy_nothing():
    cache, addresses = RowCache("causal"), set()
    states = draw(1, HEADS, 5, SIZE)
    cache.own.cache.update(states, states, 0)
    cache.own.lengths = [5]
    for _ in range(130):
        cache.own.cache.update(states[:, :, :1], states[:, :, :1], 0)
        cache.advance()
        addresses.add(cache.own.layers[0].keys.untyped_storage().data_ptr())
    assert len(addresses) <= 4
