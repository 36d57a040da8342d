"""The tables of a report's prompts."""

from softprompt.analysis import LayerNorms
from softprompt.compare.report.prompts import make_layer_table


def test_layers_have_their_numbers_norms_and_distances():
    norms = [LayerNorms(3, 1.0, 2.5), LayerNorms(7, 0.25, 4.0)]
    table = make_layer_table("deep", norms, distances=(0.125, 0.5))
    assert table.head == ("layer", "keys", "values", "distance")
    assert table.rows == [("3", "1.00", "2.50", "0.12"), ("7", "0.25", "4.00", "0.50")]
    assert table.caption == (
        "deep: mean norms of keys and values; distance from initialization, relative to its norm"
    )


def test_of_many_layers_some_are_shown():
    norms = [LayerNorms(layer, 1.0, 1.0) for layer in range(5, 30)]
    table = make_layer_table("deep", norms, distances=None)
    assert [row[0] for row in table.rows] == ["5", "8", "11", "14", "17", "20", "23", "26", "29"]
    assert {row[3] for row in table.rows} == {""}
    assert table.caption.endswith("; one of every 3 layers")
