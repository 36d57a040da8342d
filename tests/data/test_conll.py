"""Files of words and tags, as the shared tasks wrote them, lose no word and no tag."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt.data import TextFormat, read_data
from softprompt.data.conll import read_conll
from softprompt.errors import DataError

ROWS = {
    "words": [["Ms.", "Wong", "Kwan"], ["said", "#", "!"], ["日本"]],
    "tags": [["O", "B-PER", "I-PER"], ["O", "O", "O"], ["B-LOC"]],
}


def write_columns(rows, *, separator, end="\n", middle=()):
    return (end * 2).join(
        end.join(separator.join([word, *middle, tag]) for word, tag in zip(*row, strict=True))
        for row in zip(rows["words"], rows["tags"], strict=True)
    )


def read(tmp_path, text, *, name="train.conll", **options):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_data(str(path), text_format=TextFormat(**options)).to_dict()


def refusal(tmp_path, text, *, name="train.conll"):
    with pytest.raises(DataError) as caught:
        read(tmp_path, text, name=name)
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["conll", "iob", "iob2", "bio", "CONLL"])
@pytest.mark.parametrize("separator", ["\t", " ", "   "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("middle", [(), ("NNP", "I-NP")])
def test_words_and_tags_are_read(tmp_path, suffix, separator, end, middle):
    text = write_columns(ROWS, separator=separator, end=end, middle=middle)
    found = read(tmp_path, "\ufeff" + text + end, name=f"train.{suffix}")
    assert {name: found.pop(name) for name in ROWS} == ROWS
    between = [[[tag] * len(words) for words in ROWS["words"]] for tag in middle]
    assert found == dict(zip(["column_2", "column_3"], between, strict=False))


# A word or a tag of a file with tabs: no tab, line break or space around it, and not a comment.
CELL = st.text(st.characters(exclude_characters="\t\n\r\0", codec="utf-8"), min_size=1).filter(
    lambda cell: cell == cell.strip(" ") and not cell.startswith("\ufeff") and cell.strip()
)
SENTENCE = st.lists(st.tuples(CELL.filter(lambda c: c != "-DOCSTART-"), CELL), min_size=1)


@given(st.lists(SENTENCE, min_size=1), st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"]))
def test_no_word_and_no_tag_is_lost(sentences, gap):
    text = gap.join("".join(f"{w}\t{t}\n" for w, t in sentence) for sentence in sentences)
    found = read_conll(Path("train.conll"), text, is_conllu=False)
    comments = [s for s in sentences if s[0][0].startswith("#") and "=" in s[0][1]]
    if not comments:
        assert found["words"] == [[word for word, _ in sentence] for sentence in sentences]
        assert found["tags"] == [[tag for _, tag in sentence] for sentence in sentences]


def test_the_beginnings_of_documents_and_comments_are_left_out(tmp_path):
    text = (
        "-DOCSTART- -X- -X- O\n\n# id 12 domain=en\nEU NNP I-NP I-ORG\n# # I-NP O\n\n\n"
        "# sent_id = 2\n# text\n# # I-NP O\n\n-DOCSTART- -X- O O\n\nrejects VBZ I-VP O\n"
    )
    found = read(tmp_path, text)
    assert found["words"] == [["EU", "#"], ["#"], ["rejects"]]
    assert found["tags"] == [["I-ORG", "O"], ["O"], ["O"]]
    assert found["column_2"] == [["NNP", "#"], ["#"], ["VBZ"]]


def test_a_first_column_that_counts_is_not_the_words(tmp_path):
    """As in GermEval 2014, with its comments."""
    text = (
        "#\thttp://de.wikipedia.org [2009]\n1\tAufgrund\tO\tO\n2\tdes\tO\tB-X\n\n1\tRom\tB-LOC\tO\n"
    )
    found = read(tmp_path, text)
    assert found == {
        "words": [["Aufgrund", "des"], ["Rom"]],
        "column_3": [["O", "O"], ["B-LOC"]],
        "tags": [["O", "B-X"], ["O"]],
    }
    numbers = read(tmp_path, "1\tCD\tO\n7\tCD\tO\n")
    assert numbers["words"] == [["1", "7"]]


def test_words_may_have_spaces_between_tabs_and_be_white_space(tmp_path):
    text = "New York\tB-LOC\n\u00a0\tO\n\u2028\tO\n\x85\tO\n"
    assert read(tmp_path, text)["words"] == [["New York", "\u00a0", "\u2028", "\x85"]]


def test_conll_u(tmp_path):
    """The example of universaldependencies.org, with words that are written as one."""
    lines = [
        "# sent_id = 1",
        "# text = vámonos al mar",
        "1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_",
        "1\tvamos\tir\tVERB\tV\t_\t0\troot\t_\t_",
        "2\tnos\tnosotros\tPRON\tP\t_\t1\tobj\t_\t_",
        "3-4\tal\t_\t_\t_\t_\t_\t_\t_\t_",
        "3\ta\ta\tADP\tA\t_\t5\tcase\t_\t_",
        "4\tel\tel\tDET\tD\t_\t5\tdet\t_\t_",
        "4.1\tno\tno\tDET\tD\t_\t_\t_\t_\t_",
        "5\tmar\tmar\tNOUN\tN\t_\t1\tobl\t_\tSpaceAfter=No",
        "",
        "1\t#\t#\tSYM\t#\t_\t0\troot\t_\t_",
    ]
    found = read(tmp_path, "\r\n".join(lines), name="train.conllu")
    assert found["words"] == [["vamos", "nos", "a", "el", "mar"], ["#"]]
    assert found["tags"] == [["VERB", "PRON", "ADP", "DET", "NOUN"], ["SYM"]]
    assert found["deprels"] == [["root", "obj", "case", "det", "obl"], ["root"]]
    assert set(found) == {"words", "tags", "lemmas", "xpos", "deprels"}


def test_a_file_of_words_alone(tmp_path):
    assert read(tmp_path, "a\nfilm\n\nso\n") == {"words": [["a", "film"], ["so"]]}


def test_a_separator_that_is_given_is_used(tmp_path):
    assert read(tmp_path, "a b|O\nc|B-X\n", separator="|") == {
        "words": [["a b", "c"]],
        "tags": [["O", "B-X"]],
    }


def test_an_encoding_that_is_given_is_used(tmp_path):
    assert read(tmp_path, "é O\n".encode("cp1252"), encoding="cp1252")["words"] == [["é"]]
    assert "cp1252" in refusal(tmp_path, "é O\n".encode("cp1252"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a O\nb\nc O\n",
            "line 2 of .* has 1 columns .separated by spaces., but most lines have 2",
        ),
        ("a\tO\nb O\nc\tO\n", "line 2 of .* has 1 columns .separated by tabs."),
        ("a\tO\n\tO\n", "line 2 of .* has an empty word"),
        ("a\tO\nb\t\n", "line 2 of .* has an empty tag"),
        ("\n\n", "has no rows"),
        ("-DOCSTART- O\n\n", "has no rows"),
    ],
)
def test_faults_are_refused_with_their_line(tmp_path, text, message):
    assert re.search(message, refusal(tmp_path, text))


def test_columns_that_are_not_conll_u_are_refused(tmp_path):
    said = refusal(tmp_path, "a\tO\n", name="train.conllu")
    assert "line 1 of" in said
    assert "has 2 columns, but CoNLL-U has 10" in said
    assert "end in .conll" in said
